"""Ordered work in processes: the same results in the same order for any number of workers."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2

A = TypeVar("A")
B = TypeVar("B")
FEW = 4  # batches
AHEAD = 4  # batches per worker that may wait, so that memory does not depend on the length of the input


def ordered_map(function: Callable[[A], B], items: Iterable[A], *, workers: int, batch: int = 16) -> Iterator[B]:
    """Yield ``function(item)`` for every item, in order.

    Few items are worked on in this process, where starting others would take longer.

    Args:
        function: picklable.
        items: consumed lazily.
        workers: processes; 1 works in this process.
        batch: items handed over at a time.
    """
    remaining = iter(items)
    first = list(islice(remaining, FEW * batch)) if workers > 1 else []
    everything = chain(first, remaining)
    if len(first) < FEW * batch:
        yield from map(function, everything)
        return
    waiting: deque[Future[list[B]]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        for some in _batches(everything, batch):
            waiting.append(pool.submit(_apply, function, some))
            if len(waiting) > AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Set a worker up: one thread of OpenCV, and an end of its own when the process that started it is gone.

    A pool ends its workers, but not when it is killed: they would wait for work for ever.
    """
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    while batch := list(islice(items, size)):
        yield batch


def _apply(function: Callable[[A], B], items: list[A]) -> list[B]:
    return [function(item) for item in items]
