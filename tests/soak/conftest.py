"""A model and candidates that the tests of services share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import served
from support.studio import blurred_candidates


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory, empty_registry: bytes, repository: Path) -> Path:
    """A registry with two versions of a restorer."""
    return served.fill_registry(tmp_path_factory.mktemp("served"), repository, empty_registry)


@pytest.fixture(scope="session")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blurs of each of sixty crops: 600 pairs."""
    return blurred_candidates(tmp_path_factory.mktemp("candidates"), 60, 48, (0.5, 1.0, 1.5, 2.0, 3.0))
