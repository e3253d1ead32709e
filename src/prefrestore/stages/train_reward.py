"""Learn the reward from preferences, measure it on faces it never saw, and set up the composite."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from prefrestore import artifacts
from prefrestore.config import TrainRewardConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.data.preferences import read_judgements
from prefrestore.errors import UserError
from prefrestore.reward_model.collect import JUDGEMENTS
from prefrestore.reward_model.dataset import (
    build_scene,
    held_out_faces,
    load_candidates,
    quality_columns,
    split_by_face,
    to_comparisons,
)
from prefrestore.reward_model.imported import with_imported
from prefrestore.reward_model.measure import measure_parts, measure_reward, sources_of
from prefrestore.reward_model.roles import REWARD, plan_of, split_by_role
from prefrestore.reward_model.trainer import make_batch, train_network, write_trained
from prefrestore.rewards.composite import COMPOSITE
from prefrestore.rewards.network import load_network
from prefrestore.runtime.checkpoint import Checkpoints


def run(config: TrainRewardConfig, *, pairs: Path, candidates: Path, preferences: Path, reward: Path) -> None:
    """Write the reward's network and those of the judges, composite, training curves and held-out figures.

    Args:
        config: sizes, steps and weights.
        pairs: artifact with the faces.
        candidates: artifact with the restorations.
        preferences: artifact with the judgements on them.
        reward: empty output folder.

    Raises:
        UserError: too few judgements to train or to hold out, or an unknown reward among the weights.
    """
    drawn = load_candidates(candidates)
    scene = build_scene(load_pairs(pairs, "train"), drawn.groups)
    judged, judged_scene = with_imported(drawn, scene, preferences)
    judgements = read_judgements(preferences / JUDGEMENTS)
    comparisons = to_comparisons(judgements, judged)
    inputs = {"pairs": pairs, "candidates": candidates, "preferences": preferences}
    qualities = quality_columns(preferences, judged)
    figures: dict[str, dict[str, Any]] = {}
    for role, own in split_by_role(comparisons, judged.groups, preferences).items():
        plan = plan_of(role, config, judgements)
        training, held_out = split_by_face(own, judged.groups, held_out_faces(own.groups(judged.groups), plan))
        if not len(training) or not len(held_out):
            raise UserError(f"train_reward: {role}: judgements on at least two faces are needed: collect more of them")
        make = partial(make_batch, judged, judged_scene, training, plan)
        network, history = train_network(plan, make, Checkpoints(f"train_reward-{role}", plan, inputs), role)
        found = measure_reward(network, judged, judged_scene, held_out, qualities, plan.seed, role)
        figures[role] = {"training_pairs": len(training), "label_smoothing": plan.label_smoothing, **found}
        write_trained(network, history, reward if role == REWARD else reward / role)
    statistics = measure_parts(load_network(reward), drawn, scene, config)
    beside = {role: found for role, found in figures.items() if role != REWARD}
    artifacts.write_json(reward / "accuracy.json", {**figures[REWARD], "beside": beside})
    parts = {name: asdict(part) for name, part in statistics.items()}
    artifacts.write_json(reward / COMPOSITE, {"parts": parts, "sources": asdict(sources_of(config))})
