"""Our own reward: what people (or the simulated annotator) prefer."""

from __future__ import annotations

import torch
from torch import Tensor

from prefrestore.rewards.base import References
from prefrestore.rewards.network import PreferenceNetwork

BATCH_SIZE = 64


class PreferenceReward:
    """Mean logit of the ensemble over its calibrated temperature: differences are log-odds of being preferred.

    Zero is the mean of the candidates the network was trained with.
    """

    name = "preference"

    def __init__(self, network: PreferenceNetwork) -> None:
        self._network = network

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; sees LQ and text, never HQ."""
        return self.members(restored, references).mean(dim=0)

    @torch.no_grad()
    def members(self, restored: Tensor, references: References) -> Tensor:
        """Return the calibrated logits of every member [members, N]; where members differ the score is uncertain."""
        rows = [slice(start, start + BATCH_SIZE) for start in range(0, len(restored), BATCH_SIZE)]
        logits = [self._network(references.lq[row], restored[row], references.texts[row]) for row in rows]
        return (torch.cat(logits, dim=1) - self._network.offset[:, None]) / self._network.temperature
