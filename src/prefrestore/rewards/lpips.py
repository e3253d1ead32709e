"""LPIPS as a reward: minus the distance to HQ; what the network sees in an HQ image is remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from prefrestore.models.lpips import SMALLEST_SIDE, Lpips, load_lpips
from prefrestore.rewards.base import References, distinct

REMEMBERED = 64
"""HQ images whose features are kept, the latest used: those of a few epochs of alignment, 2 MB each at 64 px."""
AT_ONCE = 8
"""Images that the network sees together: more do not fit a processor's cache, fewer cost it more each."""


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
        known, owner = self._hq_features(references.hq)
        # One image after another: a difference of maps that stays in the cache is several times as fast as one of all.
        seen = zip(self._features(restored), owner.tolist(), strict=True)
        return -torch.cat([self._network.distance(maps, known[place]) for maps, place in seen])

    def _features(self, images: Tensor) -> Iterator[list[Tensor]]:
        """Yield the maps [1, h * w, C] of each image."""
        assert self._network is not None
        for few in images.split(AT_ONCE):
            blocks = list(self._network.features(few))
            yield from ([block[row : row + 1] for block in blocks] for row in range(len(few)))

    def _hq_features(self, hq: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        """Return the maps of each distinct HQ image, computed once, and which of them each image has [N]."""
        rows, owner = distinct(hq)
        keys = [hq[row].contiguous().cpu().numpy().tobytes() for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._hq}
        if new:
            self._hq |= dict(zip(new, self._features(hq[list(new.values())]), strict=True))
        for key in keys:
            self._hq.move_to_end(key)
        found = [self._hq[key] for key in keys]
        while len(self._hq) > REMEMBERED:
            self._hq.popitem(last=False)
        return found, owner
