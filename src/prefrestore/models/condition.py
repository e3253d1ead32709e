"""The condition of a batch of LQ images: computed once, then reused over steps, samples and adapters.

Three forms, each made from the one before (pipeline: ``encode_condition``, ``project``, ``prepare``):

- :class:`Condition`: tokens after the connectors; what is stored and what a trained generator reads;
- :class:`ProjectedCondition`: captions, keys and values of the frozen base, equal for all roles;
- :class:`PreparedCondition`: the acting role's keys and values, ready for every step and sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Condition:
    """What the generator needs to know of N LQ images.

    Attributes:
        tokens: [N, T, D] queries, then LQ tokens, after the connectors.
        spatial: [N, C, h, w] LQ latent for the spatially aligned path.
        text: [N, S] what the text says, standardised; zero where there is none. S is 0 where no generator asks for it.
    """

    tokens: Tensor
    spatial: Tensor
    text: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, index: Tensor | Sequence[int]) -> Condition:
        """Return the given rows; a row may be taken several times."""
        rows = torch.as_tensor(index)
        return Condition(self.tokens[rows], self.spatial[rows], self.text[rows])

    @staticmethod
    def concatenate(parts: Sequence[Condition]) -> Condition:
        """Join batches of conditions."""
        fields = ("tokens", "spatial", "text")
        return Condition(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


@dataclass(frozen=True)
class ProjectedCondition:
    """What the generator's base makes of N conditions, whatever adapter acts.

    Attributes:
        captions: [N, T, D] after caption projection and norm.
        keys_values: of every block's cross-attention, without adapter and before the norm of the keys, [N, T, D] each.
        spatial: [N, C, h, w].
        text: [N, S].
    """

    captions: Tensor
    keys_values: tuple[KeysValues, ...]
    spatial: Tensor
    text: Tensor

    def __len__(self) -> int:
        return self.captions.shape[0]


@dataclass(frozen=True)
class PreparedCondition:
    """What one role's cross-attention reads of N conditions. Valid while the role's weights stay as they are.

    Attributes:
        keys_values: of every block, [N, heads, T, head_dim] each.
        spatial: [N, C, h, w].
        text: [N, S].
    """

    keys_values: tuple[KeysValues, ...]
    spatial: Tensor
    text: Tensor

    def __len__(self) -> int:
        return self.spatial.shape[0]


def grouped(rows: Sequence[int]) -> tuple[list[int], int]:
    """Return ``(kept, repeats)`` so that ``rows`` is each of ``kept`` ``repeats`` times, with the fewest kept.

    Samples of one face that stand together then share one condition: ``[5, 5, 2, 2]`` is ``([5, 2], 2)``.
    """
    repeats = gcd(*(len(list(run)) for _, run in groupby(rows)))
    return list(rows[::repeats]), repeats


def repeated(values: Tensor, count: int) -> Tensor:
    """Return ``values`` [N, ...] with every row repeated to ``count`` rows in all; itself where it has as many."""
    return values if len(values) == count else values.repeat_interleave(samples_per_row(len(values), count), 0)


def samples_per_row(rows: int, samples: int) -> int:
    """Return how many samples share a condition.

    Raises:
        ValueError: the samples cannot be shared out evenly.
    """
    if rows == 0 or samples % rows:
        raise ValueError(f"{samples} samples cannot share {rows} conditions evenly")
    return samples // rows
