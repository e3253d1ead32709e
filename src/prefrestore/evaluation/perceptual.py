"""LPIPS of all columns: the features of each HQ face are computed once, and faces run side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from prefrestore.data.pairs import to_tensor
from prefrestore.evaluation.columns import Column
from prefrestore.models.lpips import Lpips
from prefrestore.runtime.progress import track


def lpips_values(
    network: Lpips | None, columns: Sequence[Column], hq: np.ndarray, workers: int = 1
) -> dict[str, np.ndarray]:
    """Return the LPIPS [S, N] of every column to ``hq`` [N, H, W, 3] uint8; NaN without the network.

    Every picture runs on its own and on one core, ``workers`` faces at a time, so that a value depends neither on what
    else is in the table nor on the number of workers.
    """
    found = {column.name: np.full(column.samples.shape[:2], np.nan) for column in columns}
    if network is None:
        return found

    of_face = np.concatenate([column.samples for column in columns]).swapaxes(0, 1)  # [N, samples of all columns, ...]
    with _single_threads(workers) as pool:
        rows = pool.map(partial(_distances, network), of_face, hq)
        values = np.array(list(track(rows, "evaluate: LPIPS", total=len(hq), unit="face"))).T
    ends = np.cumsum([len(column.samples) for column in columns])
    return dict(zip(found, np.split(values, ends[:-1]), strict=True))


@contextmanager
def _single_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads whose torch uses one core each; torch lets go of Python's lock while it computes."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _distances(network: Lpips, pictures: np.ndarray, hq: np.ndarray) -> list[float]:
    """Return the distance of pictures [S, H, W, 3] to their HQ [H, W, 3]; equal pictures run once."""
    known = list(network.features(to_tensor(hq[None])))
    found: dict[bytes, float] = {}
    for picture in pictures:
        if (key := picture.tobytes()) not in found:
            found[key] = float(network.distance(network.features(to_tensor(picture[None])), known))
    return [found[picture.tobytes()] for picture in pictures]
