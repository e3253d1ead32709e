"""LPIPS of all columns: the features of each HQ face are computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prefrestore.data.pairs import to_tensor
from prefrestore.evaluation.columns import Column
from prefrestore.models.lpips import Lpips
from prefrestore.runtime.progress import track


@torch.no_grad()
def lpips_values(network: Lpips | None, columns: Sequence[Column], hq: np.ndarray) -> dict[str, np.ndarray]:
    """Return the LPIPS [S, N] of every column to ``hq`` [N, H, W, 3] uint8; NaN without the network.

    Every picture runs on its own, so that a value does not depend on what else is in the table.
    """
    found = {column.name: np.full(column.samples.shape[:2], np.nan) for column in columns}
    if network is None:
        return found
    for row in track(range(len(hq)), "evaluate: LPIPS", total=len(hq), unit="face"):
        known = list(network.features(to_tensor(hq[row : row + 1])))
        for column in columns:
            found[column.name][:, row] = [_distance(network, image, known) for image in column.samples[:, row]]
    return found


def _distance(network: Lpips, image: np.ndarray, known: Sequence[Tensor]) -> float:
    return float(network.distance(network.features(to_tensor(image[None])), known))
