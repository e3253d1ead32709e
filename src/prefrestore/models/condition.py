"""The condition of a batch of LQ images: computed once, then reused over steps, samples and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the generator needs to know of N LQ images.

    Attributes:
        tokens: [N, T, D] queries, then LQ tokens, after the connectors.
        spatial: [N, C, h, w] LQ latent for the spatially aligned path.
    """

    tokens: Tensor
    spatial: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, index: Tensor | Sequence[int]) -> Condition:
        """Return the given rows; a row may be taken several times."""
        rows = torch.as_tensor(index)
        return Condition(self.tokens[rows], self.spatial[rows])

    @staticmethod
    def concatenate(parts: Sequence[Condition]) -> Condition:
        """Join batches of conditions."""
        return Condition(torch.cat([part.tokens for part in parts]), torch.cat([part.spatial for part in parts]))
