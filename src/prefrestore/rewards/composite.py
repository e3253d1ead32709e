"""The composite reward: named parts, standardised, then weighted (reference-method 6.2, Q4, Q5, Q8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.rewards.base import References, Reward
from prefrestore.rewards.clip import FAMILY, ClipReward
from prefrestore.rewards.faces import FaceReader, IdentityReward, LandmarksReward
from prefrestore.rewards.lpips import LpipsReward
from prefrestore.rewards.network import load_network
from prefrestore.rewards.preference import PreferenceReward
from prefrestore.rewards.sharpness import SharpnessReward
from prefrestore.rewards.structure import StructureReward

COMPOSITE = "composite.json"
NO_SOURCES: Mapping[str, Any] = {"lpips_weights": None, "clip_models": {}}
"""What a reward that was written before there were outside weights stands for."""
Judge = Literal["validation", "test"]
SMALLEST_SPREAD = 1e-6
"""Standard deviation at or below which values count as constant: float32 cannot tell them apart."""


@dataclass(frozen=True)
class Part:
    """Weight of a reward, and mean and standard deviation of its values on the candidates it was measured on."""

    weight: float
    mean: float
    std: float


def standardise_in_groups(values: Tensor, group_index: Tensor) -> Tensor:
    """Return ``(value - mean) / std`` [N] within each group (population statistics of the values that are no NaN).

    NaN and constant groups give 0: no signal.

    Args:
        values: [N].
        group_index: [N] int64, equal within a group.
    """
    _, group = torch.unique(group_index, return_inverse=True)
    known = ~values.isnan()
    filled = torch.where(known, values.double(), 0.0)
    size = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=values.device)
    count = size.index_add(0, group, known.double()).clamp(min=1)
    mean = size.index_add(0, group, filled) / count
    centred = torch.where(known, filled - mean[group], 0.0)
    std = (size.index_add(0, group, centred.square()) / count).sqrt()
    varies = std > SMALLEST_SPREAD
    return torch.where(varies[group], centred / torch.where(varies, std, 1.0)[group], 0.0).to(values.dtype)


def count_nan(parts: Mapping[str, Tensor]) -> dict[str, int]:
    """Return for each part how many images it could not judge."""
    return {name: int(values.isnan().sum()) for name, values in parts.items()}


class CompositeReward:
    """Several rewards, their weights and reference statistics. Close it, or use ``with``: it may hold processes."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        statistics: Mapping[str, Part],
        reader: FaceReader,
        judge: PreferenceReward | None = None,
    ) -> None:
        """Make a composite; ``judge`` is asked beside it and is no part of it."""
        self.judge = judge
        self.rewards = tuple(rewards)
        self.statistics = dict(statistics)
        self.reader = reader

    def parts(self, restored: Tensor, references: References) -> dict[str, Tensor]:
        """Return the raw value [N] of every reward by name, for ``restored`` [N, 3, H, W] in [0, 1]."""
        return {reward.name: reward.score(restored, references) for reward in self.rewards}

    def group_totals(self, parts: Mapping[str, Tensor], group_index: Tensor) -> Tensor:
        """Return ``reward_total`` [N] for alignment: each part standardised within its group, then weighted."""
        weighted = [
            self.statistics[name].weight * standardise_in_groups(values, group_index) for name, values in parts.items()
        ]
        return torch.stack(weighted).sum(dim=0)

    def totals(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return ``reward_total`` [N] for evaluation: parts standardised by the reference statistics, then weighted.

        NaN where any part is NaN: totals of different parts would not compare.
        """
        weighted = [
            self.statistics[name].weight * (values - self.statistics[name].mean) / self.statistics[name].std
            for name, values in parts.items()
        ]
        return torch.stack(weighted).sum(dim=0)

    def close(self) -> None:
        """End the processes."""
        self.reader.close()

    def __enter__(self) -> CompositeReward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Sources:
    """Where rewards that do not come with the artifact are read from.

    Attributes:
        lpips_weights: file that ``models.lpips`` describes, or None.
        clip_models: folder or hub id of ``clip_score`` and of ``pick_score``.
    """

    lpips_weights: str | None
    clip_models: Mapping[str, str]


def build_rewards(
    names: Sequence[str], preference: PreferenceReward, reader: FaceReader, sources: Sources
) -> list[Reward]:
    """Return the rewards of the given names; what lies outside the artifact is read when it is first asked.

    Raises:
        UserError: a name is unknown, or it is not said where its weights are.
    """
    known: dict[str, Reward] = {
        reward.name: reward
        for reward in (
            preference,
            StructureReward(),
            SharpnessReward(),
            IdentityReward(reader),
            LandmarksReward(reader),
        )
    }
    if sources.lpips_weights is not None:
        known["lpips"] = LpipsReward(Path(sources.lpips_weights))
    known |= {name: ClipReward(name, place) for name, place in sources.clip_models.items() if name in FAMILY}
    for name in names:
        if name not in known and name in ("lpips", *FAMILY):
            where = "lpips_weights" if name == "lpips" else f"clip_models: {name}"
            raise UserError(f"train_reward: weights: {name} needs weights: say where they are in train_reward.{where}")
        if name not in known:
            raise UserError(f"train_reward: weights: no reward is called {name!r}: choose from {', '.join(known)}")
    return [known[name] for name in names]


def load_reward(folder: Path, workers: int = 1, judge: Judge | None = None) -> CompositeReward:
    """Load the artifact ``reward``; face rewards run in ``workers`` processes.

    ``judge`` names the judge to load beside it, if the artifact has one: alignment takes ``validation``, the
    evaluation alone takes ``test``.

    Raises:
        UserError: the folder holds no reward.
    """
    if not (folder / COMPOSITE).is_file():
        raise UserError(f"{folder}: holds no reward ({COMPOSITE} is missing): run train_reward first")
    with artifacts.reading(folder / COMPOSITE):
        stored = artifacts.read_json(folder / COMPOSITE)
        statistics = {name: Part(**fields) for name, fields in stored["parts"].items()}
        sources = Sources(**stored.get("sources", NO_SOURCES))
    network = load_network(folder)
    beside = PreferenceReward(load_network(folder / judge)) if judge and (folder / judge).is_dir() else None
    reader = FaceReader(workers)
    rewards = build_rewards(list(statistics), PreferenceReward(network), reader, sources)
    return CompositeReward(rewards, statistics, reader, beside)
