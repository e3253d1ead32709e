"""Which judge a face belongs to: the reward and the judges beside it share no face, so no judgement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prefrestore import artifacts
from prefrestore.config import CollectPreferencesConfig, TrainRewardConfig
from prefrestore.data.preferences import Judgement, agreement
from prefrestore.errors import UserError
from prefrestore.reward_model.bradley_terry import smoothing_from_agreement
from prefrestore.reward_model.dataset import Comparisons, face_of
from prefrestore.runtime import seeding

REWARD = "reward"
JUDGES = ("validation", "test")
ROLES = "roles.json"


def utility_of(role: str) -> str:
    """Return the name of a role's noise-free utility among the measured qualities."""
    return "utility" if role == REWARD else f"utility_{role}"


def assign_roles(groups: Sequence[str], config: CollectPreferencesConfig) -> dict[str, str]:
    """Return the judge of each face that is set apart, ``ceil(share * faces)`` for each, chosen by seed and name."""
    faces = sorted({face_of(group) for group in groups}, key=lambda face: seeding.derive(config.seed, "role", face))
    roles: dict[str, str] = {}
    for judge in JUDGES:
        share = getattr(config.judges, judge).share
        start = len(roles)
        roles |= dict.fromkeys(faces[start : start + math.ceil(share * len(faces))], judge)
    return roles


def write_roles(folder: Path, roles: Mapping[str, str]) -> None:
    """Write ``roles.json``."""
    artifacts.write_json(folder / ROLES, dict(roles))


def split_by_role(comparisons: Comparisons, groups: Sequence[str], folder: Path) -> dict[str, Comparisons]:
    """Return the comparisons of the reward and of every judge that has faces, by role.

    Raises:
        UserError: ``roles.json`` is missing or damaged: without it judges might share faces with the reward.
    """
    with artifacts.reading(folder / ROLES):
        stored: Mapping[str, str] = dict(artifacts.read_json(folder / ROLES))
    unknown = sorted({*map(str, stored.values())} - set(JUDGES))
    if unknown:
        raise UserError(f"{folder / ROLES}: no judge is called {unknown[0]!r}: run collect_preferences again")
    role = np.array([stored.get(face_of(groups[row]), REWARD) for row in comparisons.first], dtype=object)
    return {name: comparisons.take(role == name) for name in (REWARD, *JUDGES) if name in {REWARD, *stored.values()}}


def plan_of(role: str, config: TrainRewardConfig, judgements: Sequence[Judgement]) -> TrainRewardConfig:
    """Return the configuration a role is trained with: a judge is a single network of its own seed.

    ``label_smoothing: agreement`` becomes the number that the agreement of these judgements implies.
    """
    if config.label_smoothing == "agreement":
        agreed = agreement(judgements)
        smoothing = smoothing_from_agreement(agreed["share"], agreed["couples"])
        config = config.model_copy(update={"label_smoothing": smoothing})
    if role == REWARD:
        return config
    return config.model_copy(update={"members": 1, "seed": seeding.derive(config.seed, role) % 2**31})
