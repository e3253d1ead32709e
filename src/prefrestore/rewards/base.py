"""The one interface of all rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class References:
    """What N restored images may be compared with; row i belongs to restored image i.

    Attributes:
        lq: degraded images [N, 3, H, W] in [0, 1].
        hq: clean images [N, 3, H, W] in [0, 1], or None where there are none (real photographs).
        texts: N texts, empty where unknown.
        landmarks: 68 points of the HQ faces [N, 68, 2] in pixels, NaN where unknown; None: all unknown.
        ids: names of the LQ samples.
    """

    lq: Tensor
    hq: Tensor | None
    texts: Sequence[str]
    landmarks: np.ndarray | None
    ids: Sequence[str]


class Reward(Protocol):
    """Scores restored images; larger is better."""

    @property
    def name(self) -> str:
        """Key of the reward in the configuration and in every table."""

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Return one value per image [N] for ``restored`` [N, 3, H, W] in [0, 1]; NaN where it cannot judge."""


def distinct(images: Tensor) -> tuple[list[int], Tensor]:
    """Return the rows of the images [N, ...] that differ, in order, and which of these each image is [N] int64."""
    keys = [image.contiguous().cpu().numpy().tobytes() for image in images]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return [first[key] for key in place], torch.tensor([place[key] for key in keys], device=images.device)
