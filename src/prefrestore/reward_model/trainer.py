"""Training of the preference network: stateless batches, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork, save_network
from prefrestore.runtime import seeding
from prefrestore.runtime.checkpoint import Checkpoint, Checkpoints, pack_optimizer, prefixed, select, unpack_optimizer
from prefrestore.runtime.progress import track

HISTORY_ROWS = 200
GRADIENT_NORM = 1.0
TEXT_SIZE = 8


@dataclass(frozen=True)
class Batch:
    """Judged pairs as tensors: LQ, both candidates [B, 3, H, W], texts and outcomes [B]."""

    lq: Tensor
    first: Tensor
    second: Tensor
    texts: list[str]
    outcome: Tensor


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
    """Return the loss, summed over members, and the mean logit difference a - b [B]."""
    count = len(batch.outcome)
    logits = network(batch.lq.repeat(2, 1, 1, 1), torch.cat([batch.first, batch.second]), batch.texts * 2)
    difference = logits[:, :count] - logits[:, count:]
    targets = smooth_targets(batch.outcome, smoothing)
    losses = [preference_loss(row, network.tie_margin, targets) for row in difference]
    return torch.stack(losses).sum(), difference.detach().mean(dim=0)


class RewardTrainer:
    """Trains the ensemble; its whole state fits into a checkpoint."""

    def __init__(self, config: TrainRewardConfig, make: Callable[[int], Batch]) -> None:
        seeding.be_deterministic()
        if config.label_smoothing == "agreement":
            raise ValueError("label_smoothing must be a number here: roles.plan_of resolves it")
        self._config, self._make, self._smoothing = config, make, config.label_smoothing
        self.network = new_network(config)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.history: list[dict[str, float]] = []

    def train(self, checkpoints: Checkpoints) -> None:
        """Run to the last step, from the newest checkpoint if there is one."""
        start = self._resume(checkpoints.latest())
        steps = self._config.steps
        for step in track(range(start, steps), "train_reward", total=steps, initial=start, unit="step"):
            self.history.append({"step": step + 1, **self._step(step)})
            if (step + 1) % self._config.checkpoint_every == 0 and step + 1 < steps:
                checkpoints.save(self._checkpoint(step + 1))
        self.network.eval().requires_grad_(False)

    def _step(self, step: int) -> Mapping[str, float]:
        batch = self._make(step)
        loss, difference = batch_loss(self.network, batch, self._smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * (1 + math.cos(math.pi * step / self._config.steps)) / 2
        self._optimizer.step()
        right = ((difference > 0) == (batch.outcome == A)).float()
        accuracy = torch.where(batch.outcome == TIE, 0.5, right).mean()  # a tie counts half
        return {"loss": loss.item() / self._config.members, "accuracy": accuracy.item()}

    def _checkpoint(self, step: int) -> Checkpoint:
        tensors = {**prefixed(self.network.state_dict(), "network"), **pack_optimizer(self._optimizer, "optimizer")}
        return Checkpoint(step, tensors, {"history": self.history})

    def _resume(self, checkpoint: Checkpoint | None) -> int:
        if checkpoint is None:
            return 0
        self.network.load_state_dict(select(checkpoint.tensors, "network"))
        unpack_optimizer(self._optimizer, checkpoint.tensors, "optimizer")
        self.history = list(checkpoint.state["history"])
        return checkpoint.step


def new_network(config: TrainRewardConfig) -> PreferenceNetwork:
    """Return the untrained ensemble of a configuration; weights depend on its seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(config.seed, "weights"))
        return PreferenceNetwork(NetworkConfig(config.width, config.levels, config.members, TEXT_SIZE))


def write_trained(trainer: RewardTrainer, folder: Path) -> None:
    """Write network and training curve into a folder, which is made if need be."""
    folder.mkdir(exist_ok=True)
    save_network(trainer.network, folder)
    artifacts.write_json(folder / "history.json", thin(trainer.history))


def thin(history: list[dict[str, float]], rows: int = HISTORY_ROWS) -> list[dict[str, float]]:
    """Return at most ``rows`` rows: means of consecutive blocks, named by each block's last step."""
    size = max(1, math.ceil(len(history) / rows))
    blocks = [history[start : start + size] for start in range(0, len(history), size)]
    return [
        {"step": block[-1]["step"], **{k: sum(row[k] for row in block) / len(block) for k in block[0] if k != "step"}}
        for block in blocks
    ]
