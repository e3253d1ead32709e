"""Training of the image tokenizer at small sizes.

TA-Tok distils a SigLIP teacher. There is none here, so ours learns from the pictures themselves: a throw-away head
must rebuild the picture from the code features alone, with noise of the size of the quantisation error on them.
The codebook is then fitted to the features by k-means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional

from prefrestore.config import TokenizerConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.models.tokenizer import ImageTokenizer, build_tokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.seeding import derive, rng, torch_generator
from prefrestore.runtime.training import FitSettings, History, device_of, fit
from prefrestore.sft.codec import image_batch

NOISE = 0.3
"""Length of the noise added to unit features in training: about the error that quantisation makes later."""
CODEBOOK_FACES = 300


@dataclass(frozen=True)
class CodebookUse:
    """How much of the codebook a set of images uses.

    Attributes:
        used: share of codes that occur at all.
        perplexity: exponential of the entropy of the code frequencies; the codebook's size at best.
    """

    used: float
    perplexity: float


class ReconstructionHead(nn.Module):
    """Rebuilds [B, 3, image_size, image_size] in [-1, 1] from code vectors [B, n, code_dim]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        width = config.hidden_size
        self.layers = nn.Sequential(
            nn.Conv2d(config.code_dim, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1),
            nn.PixelShuffle(config.patch_size),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return the pictures."""
        return self.layers(codes.mT.unflatten(2, (self.grid, self.grid)))


def train_tokenizer(
    config: TokenizerConfig, images: np.ndarray, seed: int, checkpoint_every: int, checkpoints: Checkpoints
) -> tuple[ImageTokenizer, History]:
    """Train a tokenizer on images [N, H, W, 3] uint8: first the features, then the codebook that fits them.

    Learning both at once by a straight-through gradient can collapse to a handful of codes, as it did at the tiny size.
    """
    torch.manual_seed(derive(seed, "tokenizer"))
    tokenizer = build_tokenizer(config)
    head = ReconstructionHead(config)
    side = (config.image_size, config.image_size)
    covered = tokenizer.grid * config.patch_size  # what lies beyond the last whole patch is not seen
    order = derive(seed, "tokenizer order")

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        rows = part.of(config.batch_size)
        batch = image_batch(images, config.batch_size, order, step)[rows].to(device_of(tokenizer))
        whole = 2 * functional.interpolate(batch, side, mode="bicubic", antialias=True).clamp(0, 1) - 1
        target = whole[..., :covered, :covered]
        features = tokenizer.features(batch)
        shape = (config.batch_size, *features.shape[1:])
        noise = torch.randn(shape, generator=torch_generator(order, "noise", step))[rows].to(features)
        picture = (head(features + NOISE * noise / config.code_dim**0.5) - target).square().mean()
        return {"loss": picture, "psnr": -10 * (picture.detach() / 4).log10()}

    settings = FitSettings(config.steps, config.learning_rate, checkpoint_every)
    history = fit("tokenizer", {"tokenizer": tokenizer, "head": head}, step_loss, settings, checkpoints)
    fit_codebook(tokenizer.eval(), images, seed)
    return tokenizer, history


@torch.no_grad()
def fit_codebook(tokenizer: ImageTokenizer, images: np.ndarray, seed: int) -> None:
    """Set the codebook to the k-means centres of the features of images [N, H, W, 3] uint8, mirrored ones too.

    The SimVQ projection becomes the identity: :meth:`ImageTokenizer.codes` then gives the centres as unit vectors.
    """
    both = np.concatenate([images, images[:, :, ::-1]])[:: max(1, 2 * len(images) // CODEBOOK_FACES)]
    features = torch.cat(
        [tokenizer.features(part.to(device_of(tokenizer))) for part in to_tensor(both).split(64)]
    ).flatten(0, 1)
    size = tokenizer.config.codebook_size
    centres, _ = kmeans2(features.cpu().numpy(), size, iter=12, minit="++", seed=rng(seed, "codebook"))
    tokenizer.codebook.weight.copy_(torch.from_numpy(centres))
    tokenizer.codebook_projection.weight.copy_(torch.eye(tokenizer.config.code_dim))
    tokenizer.codebook_projection.bias.zero_()


@torch.no_grad()
def codebook_use(tokenizer: ImageTokenizer, images: np.ndarray) -> CodebookUse:
    """Measure the use of the codebook over images [N, H, W, 3] uint8."""
    ids = torch.cat([tokenizer.ids(part.to(device_of(tokenizer))) for part in to_tensor(images).split(64)])
    counts = torch.bincount(ids.flatten(), minlength=tokenizer.config.codebook_size).double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return CodebookUse(float((counts > 0).double().mean()), float(entropy.exp()))
