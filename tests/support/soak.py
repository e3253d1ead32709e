"""Tests in ``tests/soak`` have a short form, for every day, and a long one, for ``make soak``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
SOAK = bool(os.environ.get("PREFRESTORE_SOAK"))


def scaled(short: T, long: T) -> T:
    """Return the size of the present form."""
    return long if SOAK else short


def awaited(work: Coroutine[Any, Any, T]) -> T:
    """Run asynchronous work to its end, in a thread of its own: a browser's loop may live in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()
