"""The figures of a trained reward and the composite's reference statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prefrestore.config import TrainRewardConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.errors import UserError
from prefrestore.reward_model.accuracy import (
    agreement,
    by_ensemble,
    by_margin,
    calibrate,
    compare_judges,
    member_logits,
    sensitivity,
)
from prefrestore.reward_model.dataset import CandidateSet, Comparisons, Scene, face_of
from prefrestore.reward_model.roles import REWARD, utility_of
from prefrestore.rewards.composite import Part, Sources, build_rewards
from prefrestore.rewards.faces import FaceReader
from prefrestore.rewards.network import PreferenceNetwork
from prefrestore.rewards.preference import PreferenceReward
from prefrestore.runtime import seeding
from prefrestore.runtime.progress import track

BATCH_SIZE = 32
SPOILT = 64
"""Held-out candidates that the sensitivity table is measured on, at most."""


def measure_reward(  # noqa: PLR0913 (the network, what it judged, and the seed)
    network: PreferenceNetwork,
    candidates: CandidateSet,
    scene: Scene,
    held_out: Comparisons,
    qualities: Mapping[str, np.ndarray],
    seed: int,
    role: str = REWARD,
) -> dict[str, Any]:
    """Return every figure on held-out pairs; stores offset and calibrated temperature in ``network``."""
    members = member_logits(network, candidates, scene)
    offset = members.mean(axis=1)
    network.offset.copy_(torch.from_numpy(offset))
    members -= offset[:, None]
    logits = members.mean(axis=0)
    calibration = calibrate(logits, held_out, candidates.groups, seed)
    network.temperature.fill_(calibration["temperature"])
    faces = {face_of(candidates.groups[row]) for row in held_out.first}
    rows = np.array([row for row, group in enumerate(candidates.groups) if face_of(group) in faces])
    spoilt = seeding.rng(seed, "spoilt").permutation(rows)[:SPOILT]
    return {
        "held_out_faces": len(faces),
        **compare_judges(logits, qualities, held_out, utility_of(role)),
        "agreement": agreement(logits, qualities, held_out),
        "by_margin": by_margin(logits, held_out),
        "by_ensemble": by_ensemble(members, held_out),
        "calibration": calibration,
        "sensitivity": sensitivity(network, candidates, scene, spoilt),
    }


def measure_parts(
    network: PreferenceNetwork, candidates: CandidateSet, scene: Scene, config: TrainRewardConfig
) -> dict[str, Part]:
    """Measure mean and standard deviation of every weighted reward on a random part of the candidates.

    Raises:
        UserError: a reward is unknown, or could judge fewer than two different values.
    """
    reader = FaceReader(config.workers)
    try:
        rewards = build_rewards(list(config.weights), PreferenceReward(network), reader, sources_of(config))
        order = seeding.rng(config.seed, "measured").permutation(len(candidates.groups))[: config.measured]
        batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
        values: dict[str, list[torch.Tensor]] = {reward.name: [] for reward in rewards}
        for rows in track(batches, "composite", total=len(batches), unit="batch"):
            images, references = to_tensor(candidates.images[rows]), scene.references(rows)
            for reward in rewards:
                values[reward.name].append(reward.score(images, references))
    finally:
        reader.close()
    return {name: _part(name, torch.cat(found), config.weights[name]) for name, found in values.items()}


def sources_of(config: TrainRewardConfig) -> Sources:
    """Return where the configuration says that weights of other rewards are."""
    return Sources(config.lpips_weights, {str(name): place for name, place in config.clip_models.items()})


def _part(name: str, values: torch.Tensor, weight: float) -> Part:
    known = values[~values.isnan()].double()
    if len(known) < 2 or known.std(correction=0) == 0:
        raise UserError(f"train_reward: weights: {name} can judge none of the candidates: take it out of the weights")
    return Part(weight, float(known.mean()), float(known.std(correction=0)))
