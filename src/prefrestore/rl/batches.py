"""From a judged rollout to what an update learns from: optimality, noise levels, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefrestore.config import AlignConfig
from prefrestore.rewards.composite import CompositeReward
from prefrestore.rl.advantage import (
    advantages,
    clip_rate,
    informative,
    optimality,
    zero_variance_share,
)
from prefrestore.rl.nft_loss import noised
from prefrestore.rl.rollout import solver
from prefrestore.rl.types import Noised, Rollout, TrainingBatch
from prefrestore.runtime.seeding import rng, torch_generator


@dataclass(frozen=True)
class Judged:
    """A rollout's training batch and what is to be told of it."""

    batch: TrainingBatch
    row: Mapping[str, float]


def judge(rollout: Rollout, reward: CompositeReward, config: AlignConfig) -> Judged:
    """Turn raw rewards into optimality, and describe the rollout in numbers."""
    parts, groups = rollout.parts, rollout.group_index
    total = total_of(parts, groups, reward, config)
    useful = informative(total, groups)
    advantage = advantages(total, groups, config.advantage_norm)
    local = torch.cat([group.local for group in rollout.groups])
    mixed = (1 - config.local_share) * advantage.reshape(-1, 1, 1, 1).to(local.device) + config.local_share * local
    batch = TrainingBatch(
        x0=rollout.x0,
        rows=torch.tensor([group.row for group in rollout.groups]).repeat_interleave(rollout.group_size),
        group_ids=tuple(group.group_id for group in rollout.groups for _ in range(rollout.group_size)),
        members=torch.arange(rollout.group_size).repeat(len(rollout.groups)),
        optimality=optimality(mixed, config.advantage_clip),
        weight=useful.float(),
    )
    row = {
        "reward_total": mean_known(reward.totals(parts)),
        **{f"reward_{name}": mean_known(values) for name, values in parts.items()},
        **{f"nan_{name}": float(values.isnan().sum()) for name, values in parts.items()},
        "spread": float(np.mean([group.spread for group in rollout.groups])),
        "zero_variance_share": zero_variance_share(total, groups),
        "clip_rate": clip_rate(mixed, config.advantage_clip),
    }
    return Judged(batch, row)


def total_of(parts: Mapping[str, Tensor], group_index: Tensor, reward: CompositeReward, config: AlignConfig) -> Tensor:
    """Return the weighted sum of parts [N], NaN for samples that gave no signal at all.

    ``raw`` is the published sum; one part that is NaN makes it NaN.
    """
    if config.reward_sum == "raw":
        return torch.stack([reward.statistics[name].weight * values for name, values in parts.items()]).sum(0)
    judged = torch.stack([~values.isnan() for values in parts.values()]).any(0)
    return torch.where(judged, reward.group_totals(parts, group_index), torch.nan)


def mean_known(values: Tensor) -> float:
    """Return the mean of the values that are no NaN; NaN if there are none."""
    return float(values.double().nanmean())


def update_rows(batch: TrainingBatch, config: AlignConfig, epoch: int, update: int) -> list[int]:
    """Return the samples of one update: whole groups, shuffled anew every epoch, no group in two updates."""
    order = rng("updates", config.seed, epoch).permutation(config.groups)
    share = config.groups // config.updates
    chosen = order[update * share : (update + 1) * share]
    size = len(batch.members) // config.groups
    return [int(group) * size + member for group in sorted(chosen) for member in range(size)]


def put_noise(batch: TrainingBatch, rows: Sequence[int], config: AlignConfig, epoch: int, level: int) -> Noised:
    """Put noise of the ``level``-th of the trained levels on the given samples.

    Each draw depends on seed, epoch, group and level alone (and on the member, where noise is not shared): not on
    how samples are cut into batches. Sharing keeps every sample's distribution and cancels most of the noise in the
    group's gradient, since its advantages sum to zero.
    """
    keys = [
        (config.seed, epoch, batch.group_ids[row], -1 if config.shared_noise else int(batch.members[row]))
        for row in rows
    ]
    shape = batch.x0.shape[1:]
    drawn = {key: torch.randn(shape, generator=torch_generator("nft noise", *key, level)) for key in set(keys)}
    sigma = torch.tensor([noise_level(config, key, level) for key in keys], device=batch.x0.device)
    noise = torch.stack([drawn[key] for key in keys]).to(batch.x0.device)
    return noised(batch.x0[rows], noise, sigma)


def first_noise(batch: TrainingBatch, rows: Sequence[int], config: AlignConfig, epoch: int, which: int) -> Tensor:
    """Return noise [B, C, h, w] as sampling starts from: the ``which``-th of each given sample, of its own."""
    keys = [(config.seed, epoch, batch.group_ids[row], int(batch.members[row]), which) for row in rows]
    shape = batch.x0.shape[1:]
    return torch.stack([torch.randn(shape, generator=torch_generator("first noise", *key)) for key in keys])


def noise_level(config: AlignConfig, key: tuple[int, int, str, int], level: int) -> float:
    """Return sigma of a sample's ``level``-th trained level.

    ``stratified``: one of the thousandths in the ``level``-th of equal parts of (0, 1]. ``grid``: the ``level``-th of a
    random permutation of the solver's grid without its 0 (reference-method 4.1).
    """
    if config.timestep_choice == "grid":
        grid = [sigma for sigma in solver(config).sigmas() if sigma > 0]
        return grid[rng("nft grid", *key).permutation(len(grid))[level]]
    edges = [round(1000 * edge / config.timesteps) for edge in (level, level + 1)]
    return float(rng("nft level", *key, level).integers(edges[0] + 1, edges[1] + 1)) / 1000
