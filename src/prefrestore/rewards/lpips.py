"""LPIPS as a reward: minus the distance to HQ; what the network sees in an HQ image is remembered."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from prefrestore.models.lpips import SMALLEST_SIDE, Lpips, load_lpips
from prefrestore.rewards.base import References, distinct

REMEMBERED = 64
"""HQ images whose features are kept, the latest used: those of a few epochs of alignment, 2 MB each at 64 px."""


class LpipsReward:
    """Minus LPIPS; the weights are read when the first image comes."""

    name = "lpips"

    def __init__(self, weights: Path, network: Lpips | None = None) -> None:
        self._weights, self._network = weights, network
        self._hq: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN without HQ, or where the images are too small for the network.

        Raises:
            UserError: the weights are missing or damaged.
        """
        if references.hq is None or min(restored.shape[-2:]) < SMALLEST_SIDE:
            return torch.full((len(restored),), torch.nan)
        if self._network is None:
            self._network = load_lpips(self._weights)
        return -self._network.distance(self._network.features(restored), self._hq_features(references.hq))

    def _hq_features(self, hq: Tensor) -> list[Tensor]:
        """Return the rows [N, h * w, C] of each block, computed once per HQ image."""
        assert self._network is not None
        rows, owner = distinct(hq)
        keys = [hq[row].contiguous().cpu().numpy().tobytes() for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._hq}
        if new:
            blocks = list(self._network.features(hq[list(new.values())]))
            self._hq |= {key: [block[place] for block in blocks] for place, key in enumerate(new)}
        for key in keys:
            self._hq.move_to_end(key)
        found = [torch.stack(blocks)[owner] for blocks in zip(*(self._hq[key] for key in keys), strict=True)]
        while len(self._hq) > REMEMBERED:
            self._hq.popitem(last=False)
        return found
