"""Records of alignment: what is drawn, how it was judged, what is trained on. K is the group size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prefrestore.data.pairs import to_tensor
from prefrestore.rewards.base import References


@dataclass(frozen=True)
class FacePool:
    """LQ images with what their restorations are compared with.

    Attributes:
        ids: M LQ sample ids ``face/variant``: the group ids.
        lq, hq: [M, H, W, 3] uint8.
        texts: M prompts' captions.
        landmarks: [M, 68, 2] float32 in pixels of HQ, NaN where unknown.
    """

    ids: tuple[str, ...]
    lq: np.ndarray
    hq: np.ndarray
    texts: tuple[str, ...]
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def references(self, rows: Sequence[int]) -> References:
        """Return the references of the given rows; a row may be taken several times."""
        index = np.asarray(rows)
        return References(
            lq=to_tensor(self.lq[index]),
            hq=to_tensor(self.hq[index]),
            texts=[self.texts[row] for row in rows],
            landmarks=self.landmarks[index],
            ids=[self.ids[row] for row in rows],
        )


@dataclass(frozen=True)
class RolloutGroup:
    """K restorations of one LQ image by the old policy, and their raw rewards.

    Attributes:
        group_id: the LQ sample's id.
        row: its place in the pool.
        x0: latents [K, C, h, w].
        local: advantages place by place, [K, 1, h, w].
        parts: raw value [K] of every reward by name, NaN where it could not judge.
        spread: mean over pixels of the standard deviation over the K images.
    """

    group_id: str
    row: int
    x0: Tensor
    local: Tensor
    parts: Mapping[str, Tensor]
    spread: float

    def to(self, device: torch.device | str) -> RolloutGroup:
        """Return the group with its latents on a device."""
        return replace(self, x0=self.x0.to(device), local=self.local.to(device))


@dataclass(frozen=True)
class Rollout:
    """All groups of one epoch, all of the same size."""

    groups: tuple[RolloutGroup, ...]

    @property
    def group_size(self) -> int:
        """K."""
        return len(self.groups[0].x0)

    @property
    def x0(self) -> Tensor:
        """Latents of all samples, group by group, [G * K, C, h, w]."""
        return torch.cat([group.x0 for group in self.groups])

    @property
    def group_index(self) -> Tensor:
        """Place of every sample's group, [G * K] int64."""
        return torch.arange(len(self.groups)).repeat_interleave(self.group_size)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Raw rewards of all samples by name, [G * K] each."""
        names = self.groups[0].parts
        return {name: torch.cat([group.parts[name] for group in self.groups]) for name in names}


@dataclass(frozen=True)
class Noised:
    """Samples with noise on them: ``x_t = (1 - sigma) * x0 + sigma * noise``.

    Attributes:
        x0: [B, C, h, w].
        x_t: [B, C, h, w].
        sigma: [B] in (0, 1].
    """

    x0: Tensor
    x_t: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """What the updates of one epoch learn from.

    Attributes:
        x0: latents of all samples, group by group, [N, C, h, w].
        rows: place of every sample's LQ image in the pool, [N] int64.
        group_ids: N ids.
        members: number of every sample within its group, [N] int64.
        optimality: the paper's r in [0, 1], place by place, [N, 1, h, w].
        weight: 1, or 0 for samples nothing may be learned from, [N].
    """

    x0: Tensor
    rows: Tensor
    group_ids: tuple[str, ...]
    members: Tensor
    optimality: Tensor
    weight: Tensor
