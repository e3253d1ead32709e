"""Ordered work in processes: the same results in the same order for any number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
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
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,))
    try:
        for some in _batches(everything, batch):
            waiting.append(pool.submit(_apply, function, some))
            if len(waiting) > AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    while batch := list(islice(items, size)):
        yield batch


def _apply(function: Callable[[A], B], items: list[A]) -> list[B]:
    return [function(item) for item in items]
