"""From rewards to optimality (reference-method 4.4), keyed by LQ sample, not by caption (6.2, Q8)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to the standard deviation, as published."""
SMALLEST_SPREAD = 1e-6
"""Standard deviation of a group's rewards at or below which they count as equal."""

AdvantageNorm = Literal["global_std", "group_std"]


def advantages(reward_total: Tensor, group_index: Tensor, norm: AdvantageNorm) -> Tensor:
    """Return ``(reward - mean of its group) / (std + 1e-4)`` [N], population std.

    ``global_std`` divides by the standard deviation of all rewards of the epoch (the paper), ``group_std`` by that of
    the group. Rewards that are not finite get 0 and do not count in any statistic.

    Args:
        reward_total: [N].
        group_index: [N] int64, equal within a group.
    """
    known = reward_total.isfinite()
    reward = torch.where(known, reward_total.double(), 0.0)
    centred = torch.where(known, reward - _group_mean(reward, known, group_index), 0.0)
    if norm == "group_std":
        std = _group_mean(centred.square(), known, group_index).sqrt()
    else:
        std = reward[known].std(correction=0) if known.any() else torch.ones((), dtype=torch.float64)
    return (centred / (std + EPSILON)).float()


def _group_mean(values: Tensor, known: Tensor, group_index: Tensor) -> Tensor:
    """Return for every element the mean of its group's known elements, 0 where there are none."""
    _, group = torch.unique(group_index, return_inverse=True)
    size = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=values.device)
    count = size.index_add(0, group, known.double())
    total = size.index_add(0, group, torch.where(known, values, 0.0))
    return (total / count.clamp(min=1))[group]


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """Return the paper's r = ``clip(clip(A, -c, c) / 2c + 0.5, 0, 1)``, of any shape."""
    return (advantage.clamp(-clip, clip) / (2 * clip) + 0.5).clamp(0, 1)


def clip_rate(advantage: Tensor, clip: float) -> float:
    """Return the share of advantages that lie outside of [-clip, clip]."""
    return float((advantage.abs() > clip).double().mean())


def informative(reward_total: Tensor, group_index: Tensor) -> Tensor:
    """Return which samples something can be learned from, [N] bool: reward known, and not equal over the group."""
    known = reward_total.isfinite()
    reward = torch.where(known, reward_total.double(), 0.0)
    centred = torch.where(known, reward - _group_mean(reward, known, group_index), 0.0)
    return known & (_group_mean(centred.square(), known, group_index).sqrt() > SMALLEST_SPREAD)


def zero_variance_share(reward_total: Tensor, group_index: Tensor) -> float:
    """Return the share of groups without signal: known rewards all equal, or none known."""
    useful = informative(reward_total, group_index)
    return 1 - group_index[useful].unique().numel() / group_index.unique().numel()
