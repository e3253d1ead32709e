"""Progress for people: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from prefrestore.runtime.distributed import is_writer

T = TypeVar("T")
LOG_SECONDS = 15.0


def track(
    items: Iterable[T], description: str, *, total: int | None, initial: int = 0, unit: str = "it"
) -> Iterator[T]:
    """Yield ``items`` while showing count, rate and time left; of several processes only the first shows them.

    Args:
        items: what to go through.
        description: what is being done.
        total: how many there are, those done before included; None: nobody knows.
        initial: how many were done before (a resumed run).
        unit: what one item is called.
    """
    if not is_writer():
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(
            items, description, total=total, initial=initial, unit=unit, dynamic_ncols=True, mininterval=0.2
        )
        return
    if initial:
        _log(f"{description}: resumes at {initial}/{total} {unit}")
    started = shown = time.monotonic()
    done = initial
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown >= LOG_SECONDS:
            shown = now
            rate = (done - initial) / (now - started)
            left = f", {(total - done) / rate:.0f} s left" if total is not None else ""
            _log(f"{description}: {_share(done, total)} {unit}, {rate:.1f} {unit}/s{left}")
    _log(f"{description}: {_share(done, total)} {unit} in {time.monotonic() - started:.1f} s")


def _share(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done}/{total}"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
