"""Tests in ``tests/soak`` have a short form, for every day, and a long one, for ``make soak``."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
SOAK = bool(os.environ.get("PREFRESTORE_SOAK"))


def scaled(short: T, long: T) -> T:
    """Return the size of the present form."""
    return long if SOAK else short
