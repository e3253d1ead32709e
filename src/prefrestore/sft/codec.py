"""Training of the codec: from the linear solution on, by absolute and squared error."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor

from prefrestore.config import TrainCodecConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.models.codec import build_codec, can_start_linear, decode, decode_raw, encode, start_linear
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.seeding import batch_indices, derive, rng
from prefrestore.runtime.training import FitSettings, History, device_of, fit

LINEAR_FACES = 200


def image_batch(images: np.ndarray, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the images [B, 3, H, W] of a training step, half of them mirrored at random."""
    rows = images[batch_indices(len(images), batch_size, seed, step)]
    mirrored = rng(seed, "mirror", step).random(batch_size) < 0.5
    return to_tensor(np.where(mirrored[:, None, None, None], rows[:, :, ::-1], rows))


def train_codec(
    config: TrainCodecConfig, images: np.ndarray, checkpoints: Checkpoints
) -> tuple[AutoencoderDC, History]:
    """Train a codec on images [N, H, W, 3] uint8.

    Starts from the PCA code of the images where the widths can carry it, else from random weights.
    """
    torch.manual_seed(derive(config.seed, "codec"))
    codec = build_codec(config)
    if can_start_linear(config):
        start_linear(codec, to_tensor(images[:LINEAR_FACES]))
    codec.to(memory_format=torch.channels_last)

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        batch = image_batch(images, config.batch_size, config.seed, step)[part.of(config.batch_size)]
        batch = batch.to(device_of(codec))
        error = decode_raw(codec, encode(codec, batch)) - batch
        absolute, squared = error.abs().mean(), error.square().mean()
        return {"loss": absolute + 2 * squared, "psnr": -10 * squared.detach().log10()}

    settings = FitSettings(config.steps, config.learning_rate, config.checkpoint_every)
    history = fit("codec", {"codec": codec}, step_loss, settings, checkpoints)
    _standardise(codec, images)
    return codec.eval(), history


@torch.no_grad()
def _standardise(codec: AutoencoderDC, images: np.ndarray) -> None:
    """Set the scaling factor so that latents have unit mean square: the scale of the flow's noise."""
    latents = encode(codec, to_tensor(images[:LINEAR_FACES]).to(device_of(codec)))
    codec.register_to_config(scaling_factor=float(latents.square().mean().rsqrt()))


@torch.no_grad()
def round_trip_psnr(codec: AutoencoderDC, images: np.ndarray) -> list[float]:
    """Return the PSNR (dB) of every image [N, H, W, 3] uint8 after encoding and decoding: the ceiling."""
    originals = to_tensor(images).to(device_of(codec))
    parts = [decode(codec, encode(codec, part)) for part in originals.split(32)]
    squared = (torch.cat(parts) - originals).square().mean((1, 2, 3))
    return (-10 * squared.log10()).tolist()
