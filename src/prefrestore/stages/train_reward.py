"""Learn the reward from preferences, measure it on faces it never saw, and set up the composite."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

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
from prefrestore.reward_model.measure import measure_parts, measure_reward
from prefrestore.reward_model.trainer import RewardTrainer, make_batch, thin
from prefrestore.rewards.composite import COMPOSITE
from prefrestore.rewards.network import save_network
from prefrestore.runtime.checkpoint import Checkpoints


def run(config: TrainRewardConfig, *, pairs: Path, candidates: Path, preferences: Path, reward: Path) -> None:
    """Write network, composite, learning curve and held-out figures.

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
    comparisons = to_comparisons(read_judgements(preferences / JUDGEMENTS), judged)
    training, held_out = split_by_face(comparisons, judged.groups, held_out_faces(judged.groups, config))
    if not len(training) or not len(held_out):
        raise UserError("train_reward: judgements on at least two faces are needed: collect more preferences")
    trainer = RewardTrainer(config, partial(make_batch, judged, judged_scene, training, config))
    inputs = {"pairs": pairs, "candidates": candidates, "preferences": preferences}
    trainer.train(Checkpoints("train_reward", config, inputs))
    qualities = quality_columns(preferences, judged)
    accuracy = measure_reward(trainer.network, judged, judged_scene, held_out, qualities, config.seed)
    statistics = measure_parts(trainer.network, drawn, scene, config)
    save_network(trainer.network, reward)
    artifacts.write_json(reward / "accuracy.json", {"training_pairs": len(training), **accuracy})
    artifacts.write_json(reward / COMPOSITE, {"parts": {name: asdict(part) for name, part in statistics.items()}})
    artifacts.write_json(reward / "history.json", thin(trainer.history))
