"""Rollouts: the old policy restores every LQ image of an epoch K times, the rewards judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from prefrestore.config import AlignConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.diffusion.sampler import Sampler
from prefrestore.models.adapters import Role, using_role
from prefrestore.models.condition import grouped
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rewards.composite import CompositeReward
from prefrestore.rl.local import local_advantages
from prefrestore.rl.pool import ConditionCache
from prefrestore.rl.types import FacePool, RolloutGroup
from prefrestore.runtime.seeding import derive


def solver(config: AlignConfig) -> Sampler:
    """Return the sampler of the rollouts."""
    return Sampler(config.sampler_steps, reaches_zero=config.solver_end == "zero")


@dataclass(frozen=True)
class Restorer:
    """Draws restorations of a pool's LQ images by any role."""

    pipeline: PrefRestorePipeline
    pool: FacePool
    conditions: ConditionCache
    sampler: Sampler
    batch_size: int

    @torch.no_grad()
    def latents(self, role: Role, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Draw one latent for each pool row and seed; return [N, C, h, w]."""
        parts = []
        with using_role(self.pipeline, role):
            for start in range(0, len(rows), self.batch_size):
                part = slice(start, start + self.batch_size)
                noise = self.pipeline.initial_noise(seeds[part]).to(self.pipeline.device)
                parts.append(self._solve(noise, rows[part]))
        return torch.cat(parts)

    def _solve(self, noise: Tensor, rows: Sequence[int]) -> Tensor:
        faces, _ = grouped(rows)
        return self.sampler(self.pipeline.velocity_function(self.conditions.rows(faces)), noise)

    def images(self, latents: Tensor) -> Tensor:
        """Decode latents [N, C, h, w] to images [N, 3, H, W] in [0, 1] on the CPU, where rewards judge."""
        return torch.cat([self.pipeline.decode(part).float().cpu() for part in latents.split(self.batch_size)])


def collect(
    restorer: Restorer, reward: CompositeReward, config: AlignConfig, epoch: int, rows: Sequence[int]
) -> list[RolloutGroup]:
    """Sample and judge the groups of some of an epoch's rows: a pure function of the old policy, the row and the epoch.

    A thread judges the groups just sampled while the next are sampled.
    """
    together = max(1, config.batch_size // config.group_size)
    judging: list[Future[list[RolloutGroup]]] = []
    with ThreadPoolExecutor(1) as judge:
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            samples = [(row, member) for row in part for member in range(config.group_size)]
            seeds = [derive("rollout", config.seed, epoch, restorer.pool.ids[row], member) for row, member in samples]
            latents = restorer.latents("old", [row for row, _ in samples], seeds)
            judging.append(judge.submit(_judge, restorer, reward, config, part, latents))
        return [group for future in judging for group in future.result()]


def _judge(
    restorer: Restorer, reward: CompositeReward, config: AlignConfig, rows: Sequence[int], latents: Tensor
) -> list[RolloutGroup]:
    pool, size = restorer.pool, len(latents) // len(rows)
    x0, broken = without_broken(latents)
    images = restorer.images(x0)
    references = pool.references([row for row in rows for _ in range(size)])
    hq = to_tensor(pool.hq[list(rows)])
    targets = restorer.pipeline.encode(hq)
    judged = known_parts(reward.parts(images, references), broken.cpu())
    groups = []
    for place, row in enumerate(rows):
        part = slice(place * size, (place + 1) * size)
        parts = {name: values[part] for name, values in judged.items()}
        local = local_advantages(x0[part], targets[place], images[part], hq[place], config.local)
        groups.append(RolloutGroup(pool.ids[row], row, x0[part], local, parts, spread(images[part])))
    return groups


def without_broken(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents with every sample that is not finite set to zero, and which those are, [N] bool."""
    broken = ~latents.isfinite().flatten(1).all(1)
    return torch.where(broken.reshape(-1, *([1] * (latents.ndim - 1))), 0.0, latents), broken


def known_parts(parts: Mapping[str, Tensor], broken: Tensor) -> dict[str, Tensor]:
    """Return the parts with NaN for broken samples and for infinite values, which are no judgement either."""
    return {name: torch.where(values.isfinite() & ~broken, values, torch.nan) for name, values in parts.items()}


def spread(images: Tensor) -> float:
    """Return the mean over pixels of the standard deviation over K images [K, 3, H, W]."""
    return float(images.double().std(dim=0, correction=1).mean())
