"""Our own reward: what people (or the simulated annotator) prefer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefrestore.rewards.base import References, distinct
from prefrestore.rewards.network import PreferenceNetwork

BATCH_SIZE = 64


class PreferenceReward:
    """Mean logit of the ensemble over its calibrated temperature: differences are log-odds of being preferred.

    Zero is the mean of the candidates the network was trained with.
    """

    name = "preference"

    def __init__(self, network: PreferenceNetwork) -> None:
        self._where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._where)

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; sees LQ and text, never HQ."""
        return self.members(restored, references).mean(dim=0)

    @torch.no_grad()
    def members(self, restored: Tensor, references: References) -> Tensor:
        """Return the calibrated logits of every member [members, N]; where members differ the score is uncertain."""
        rows = [slice(start, start + BATCH_SIZE) for start in range(0, len(restored), BATCH_SIZE)]
        logits = torch.cat([self._logits(restored[row], references.lq[row], references.texts[row]) for row in rows], 1)
        return ((logits - self._network.offset[:, None]) / self._network.temperature).to(restored.device)

    def _logits(self, restored: Tensor, lq: Tensor, texts: Sequence[str]) -> Tensor:
        """Return raw logits [members, N]; an LQ image that several restore is looked at once."""
        first, owner = distinct(lq)
        # an image may come with different texts: then it counts as several
        if any(texts[first[place]] != text for place, text in zip(owner.tolist(), texts, strict=True)):
            first, owner = list(range(len(lq))), torch.arange(len(lq))
        seen, told = lq[first].to(self._where), [texts[row] for row in first]
        return self._network(seen, restored.to(self._where), told, owner.to(self._where))
