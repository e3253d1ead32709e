"""One finished graph at the smoke preset, made once and shared; tests that use it stand in the group ``graph``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefrestore.stage import STAGES
from support import graph as graphs


@pytest.fixture(scope="session")
def graph(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the whole graph has run."""
    folder = graphs.copy(repository, tmp_path_factory.mktemp("graph") / "project")
    assert graphs.stages_run(graphs.run(folder, "dvc", "repro")) == list(STAGES)
    return folder


@pytest.fixture
def finished(graph: Path, tmp_path: Path) -> Path:
    """A copy of the finished graph that a test may change."""
    return Path(shutil.copytree(graph, tmp_path / "project", symlinks=True))
