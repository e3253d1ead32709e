"""Training of the regression baseline: absolute and squared error to HQ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prefrestore.config import TrainBaselineConfig
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.models.baseline import RegressionUNet
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.seeding import batch_indices, derive, rng
from prefrestore.runtime.training import FitSettings, History, device_of, fit


def pair_batch(pairs: PairSet, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return LQ and HQ [B, 3, H, W] of a training step; half of the pairs mirrored at random."""
    faces, variants = pairs.lq.shape[:2]
    face, variant = np.divmod(batch_indices(faces * variants, batch_size, seed, step), variants)
    mirrored = (rng(seed, "mirror", step).random(batch_size) < 0.5)[:, None, None, None]
    lq, hq = pairs.lq[face, variant], pairs.hq[face]
    return (
        to_tensor(np.where(mirrored, lq[:, :, ::-1], lq)),
        to_tensor(np.where(mirrored, hq[:, :, ::-1], hq)),
    )


def regression_loss(error: Tensor) -> Tensor:
    """Return absolute plus twice squared error of images in [0, 1], a scalar."""
    return error.abs().mean() + 2 * error.square().mean()


def train_baseline(
    config: TrainBaselineConfig, pairs: PairSet, checkpoints: Checkpoints
) -> tuple[RegressionUNet, History]:
    """Train the U-Net on the training pairs."""
    torch.manual_seed(derive(config.seed, "baseline"))
    network = RegressionUNet(config.width).to(memory_format=torch.channels_last)

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        rows = part.of(config.batch_size)
        lq, hq = (side[rows].to(device_of(network)) for side in pair_batch(pairs, config.batch_size, config.seed, step))
        error = network(lq) - hq
        return {"loss": regression_loss(error), "psnr": -10 * error.detach().square().mean().log10()}

    settings = FitSettings(config.steps, config.learning_rate, config.checkpoint_every, ema_decay=0.99)
    history = fit("baseline", {"network": network}, step_loss, settings, checkpoints)
    return network.eval(), history
