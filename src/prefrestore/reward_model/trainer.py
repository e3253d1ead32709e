"""Training of the preference network: stateless batches, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefrestore import artifacts
from prefrestore.config import TrainRewardConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.reward_model.bradley_terry import TIE, A, preference_loss, smooth_targets
from prefrestore.reward_model.corruption import spoil
from prefrestore.reward_model.dataset import CandidateSet, Comparisons, Scene, face_of
from prefrestore.rewards.backbone import load_backbone
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork, save_network
from prefrestore.runtime import seeding
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.training import FitSettings, History, device_of, fit

TEXT_SIZE = 8


@dataclass(frozen=True)
class Batch:
    """Judged pairs as tensors: LQ, both candidates [B, 3, H, W], texts and outcomes [B]."""

    lq: Tensor
    first: Tensor
    second: Tensor
    texts: list[str]
    outcome: Tensor

    def take(self, rows: slice, where: torch.device) -> Batch:
        """Return some of the pairs, on a device."""
        lq, first, second, outcome = (
            value[rows].to(where) for value in (self.lq, self.first, self.second, self.outcome)
        )
        return Batch(lq, first, second, self.texts[rows], outcome)


def make_batch(
    candidates: CandidateSet, scene: Scene, pairs: Comparisons, config: TrainRewardConfig, step: int
) -> Batch:
    """Return the batch of a step, a pure function of its arguments.

    ``corrupted * batch_size`` pairs are a candidate against its spoilt copy, the rest judged pairs; each pair is
    mirrored with its LQ image half of the time.
    """
    random = seeding.rng(config.seed, "batch", step)
    judged = pairs.take(seeding.batch_indices(len(pairs), config.batch_size, config.seed, step))
    spoilt = round(config.corrupted * config.batch_size)
    first, second = candidates.images[judged.first], candidates.images[judged.second].copy()
    outcome = judged.outcome.copy()
    for row in range(spoilt):
        other = candidates.images[_stranger(candidates.groups, judged.first[row], pairs.first, random)]
        second[row] = spoil(first[row], other, random)
        outcome[row] = A
    mirrored = torch.from_numpy(random.random(len(judged)) < 0.5)[:, None, None, None]
    lq, a, b = (_mirror(images, mirrored) for images in (scene.lq[judged.first], to_tensor(first), to_tensor(second)))
    return Batch(lq, a, b, [scene.texts[row] for row in judged.first], torch.from_numpy(outcome))


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored, images.flip(-1), images)


def _stranger(groups: tuple[str, ...], row: int, known: np.ndarray, random: np.random.Generator) -> int:
    """Return one of the ``known`` candidates, of another face (the candidate itself where there is one face only)."""
    start = int(random.integers(len(known)))
    others = (int(known[(start + offset) % len(known)]) for offset in range(len(known)))
    return next((other for other in others if face_of(groups[other]) != face_of(groups[row])), int(row))


def batch_loss(network: PreferenceNetwork, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the loss, summed over members, and the mean logit difference a - b [B]; LQ is looked at once for both."""
    count = len(batch.outcome)
    owner = torch.arange(count, device=batch.lq.device).repeat(2)
    logits = network(batch.lq, torch.cat([batch.first, batch.second]), batch.texts, owner)
    difference = logits[:, :count] - logits[:, count:]
    targets = smooth_targets(batch.outcome, smoothing)
    losses = [preference_loss(row, network.tie_margin, targets) for row in difference]
    return torch.stack(losses).sum(), difference.detach().mean(dim=0)


def train_network(
    config: TrainRewardConfig, make: Callable[[int], Batch], checkpoints: Checkpoints, role: str = "reward"
) -> tuple[PreferenceNetwork, History]:
    """Train the ensemble, from the newest checkpoint if there is one, in as many processes as there are.

    Args:
        config: sizes and steps; its ``label_smoothing`` is a number (``roles.plan_of`` resolves ``agreement``).
        make: gives the whole batch of a step.
        checkpoints: where to save and resume.
        role: shown in the progress line.

    Returns:
        the network, for inference, and its training curve.

    Raises:
        UserError: the backbone is missing, or a batch cannot be cut into equal parts.
    """
    if config.label_smoothing == "agreement":
        raise ValueError("label_smoothing must be a number here: roles.plan_of resolves it")
    smoothing = config.label_smoothing
    network = new_network(config)

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        batch = make(step).take(part.of(config.batch_size), device_of(network))
        loss, difference = batch_loss(network, batch, smoothing)
        right = ((difference > 0) == (batch.outcome == A)).float()
        accuracy = torch.where(batch.outcome == TIE, 0.5, right).mean()  # a tie counts half
        return {"loss": loss / config.members, "accuracy": accuracy}

    settings = FitSettings(
        config.steps,
        config.learning_rate,
        config.checkpoint_every,
        weight_decay=config.weight_decay,
        accumulation=config.accumulation,
    )
    history = fit(f"train_reward ({role})", {"network": network}, step_loss, settings, checkpoints)
    return network.eval().requires_grad_(False), history


def new_network(config: TrainRewardConfig) -> PreferenceNetwork:
    """Return the untrained ensemble of a configuration; weights depend on its seed alone."""
    backbone = None if config.backbone is None else load_backbone(config.backbone).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(config.seed, "weights"))
        sizes = NetworkConfig(config.width, config.levels, config.members, TEXT_SIZE, backbone, config.patch)
        return PreferenceNetwork(sizes)


def write_trained(network: PreferenceNetwork, history: History, folder: Path) -> None:
    """Write network and training curve into a folder, which is made if need be."""
    folder.mkdir(exist_ok=True)
    save_network(network, folder)
    artifacts.write_json(folder / "history.json", history)
