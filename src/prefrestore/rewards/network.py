"""The preference network: LQ image, candidate and text in, one logit per ensemble member out; it never sees HQ.

Its members are small convolutional networks, or heads on a frozen model of the CLIP family (``rewards.backbone``).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.models.weight_files import refuse_not_finite
from prefrestore.rewards.backbone import BackboneConfig, load_backbone

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TEXT_BUCKETS = 256
GROUP_CHANNELS = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        width: channels of the first level; doubles per level. On a backbone: of every level.
        levels: resolutions looked at, the first at ``1 / patch`` of the image's size. On a backbone: depths.
        members: independent networks whose mean is the score and whose spread is the uncertainty.
        text_size: numbers a text is embedded in.
        backbone: the frozen model that the members look through, or None.
        patch: side of the pixel blocks that are folded into channels before the first level.
    """

    width: int
    levels: int
    members: int
    text_size: int
    backbone: BackboneConfig | None = None
    patch: int = 2

    @property
    def depths(self) -> list[int]:
        """Layers of the backbone after which its patches are looked at."""
        layers = self.backbone.layers if self.backbone else 0
        return [max(1, round(layers * (level + 1) / self.levels)) for level in range(self.levels)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = channels // GROUP_CHANNELS
        self.norm_1, self.norm_2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        hidden = self.conv_1(functional.silu(self.norm_1(features)))
        return features + self.conv_2(functional.silu(self.norm_2(hidden)))


class ConvolutionalMember(nn.Module):
    """One network of the ensemble, trained from scratch."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(config.levels)]
        self.stem = nn.Conv2d(9 * config.patch**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.text = nn.EmbeddingBag(TEXT_BUCKETS, config.text_size, mode="mean")
        self.head = _head(2 * sum(widths) + config.text_size, widths[-1])

    def forward(self, images: Tensor, words: tuple[Tensor, Tensor], owner: Tensor) -> Tensor:
        """Return logits [N] of stacked images [N, 9 patch^2, h, w]; their texts are rows ``owner`` [N] of ``words``."""
        features = self.stem(images)
        pooled = []
        for level, block in enumerate(self.blocks):
            features = block(features if level == 0 else self.downs[level - 1](features))
            pooled += _mean_and_spread(features, (2, 3))
        return self.head(torch.cat([*pooled, self.text(*words)[owner]], dim=1)).squeeze(1)


class BackboneMember(nn.Module):
    """One head of the ensemble: compares candidate and LQ place by place in what the frozen model sees."""

    def __init__(self, config: NetworkConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * backbone.vision_size, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
            for _ in range(config.levels)
        )
        self.text = nn.Linear(backbone.text_size, config.text_size)
        self.head = _head(2 * config.width * config.levels + config.text_size, config.width)

    def forward(self, lq: Sequence[Tensor], candidate: Sequence[Tensor], text: Tensor) -> Tensor:
        """Return logits [N] from the patches [N, places, D] at every depth and the texts [N, D]."""
        pooled = []
        for level, one, other in zip(self.levels, lq, candidate, strict=True):
            pooled += _mean_and_spread(level(torch.cat([other, other - one], dim=2)), (1,))
        return self.head(torch.cat([*pooled, self.text(text)], dim=1)).squeeze(1)


def _head(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))


def _mean_and_spread(features: Tensor, places: tuple[int, ...]) -> list[Tensor]:
    """Say how much of a texture there is, and how unevenly it lies."""
    return [features.mean(dim=places), features.std(dim=places, correction=0)]


class PreferenceNetwork(nn.Module):
    """The ensemble; ``temperature`` and ``tie_margin`` turn logits into probabilities."""

    temperature: Tensor
    offset: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        """Make an untrained ensemble.

        Raises:
            UserError: the backbone is not there, or is not the one that is named.
        """
        super().__init__()
        self.config = config
        self._backbone = None if config.backbone is None else load_backbone(config.backbone.place)
        if self._backbone is not None and self._backbone.config != config.backbone:
            raise UserError(
                f"{self._backbone.config.place}: is not the model that the reward was trained on: restore it"
            )
        self.members = nn.ModuleList(
            BackboneMember(config, config.backbone) if config.backbone else ConvolutionalMember(config)
            for _ in range(config.members)
        )
        self.tie_logit = nn.Parameter(torch.tensor(-1.0))
        self.register_buffer("temperature", torch.tensor(1.0))
        # Bradley-Terry fixes differences only; zero is put at the mean of the candidates that were judged
        self.register_buffer("offset", torch.zeros(config.members))

    @property
    def tie_margin(self) -> Tensor:
        """Difference of logits below which ties are likely; positive."""
        return functional.softplus(self.tie_logit)

    def forward(self, lq: Tensor, candidate: Tensor, texts: Sequence[str], owner: Tensor | None = None) -> Tensor:
        """Return logits [members, N] of candidates [N, 3, H, W] in [0, 1].

        Args:
            lq: M degraded images [M, 3, H, W], each of which may have several candidates.
            candidate: the restorations.
            texts: M texts.
            owner: row of ``lq`` that each candidate restores [N] int64; None: candidate i restores row i.
        """
        owner = torch.arange(len(lq), device=lq.device) if owner is None else owner
        if self._backbone is not None:
            seen = [tokens[owner] for tokens in self._backbone.tokens(lq, self.config.depths)]
            own = self._backbone.tokens(candidate, self.config.depths)
            told = self._backbone.texts(texts)[owner]
            return torch.stack([member(seen, own, told) for member in self.members])
        images = _stack(lq[owner], candidate, self.config.patch)
        words = hash_words(texts, lq.device)
        return torch.stack([member(images, words, owner) for member in self.members])


def _stack(lq: Tensor, candidate: Tensor, patch: int) -> Tensor:
    """Return both images and what changed [N, 9 patch^2, H / patch, W / patch], about unit scale."""
    stacked = torch.cat([2 * lq - 1, 2 * candidate - 1, 4 * (candidate - lq)], dim=1)
    return functional.pixel_unshuffle(stacked, patch)


def hash_words(texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return bucket indices of all words and the offset at which each text starts, as ``EmbeddingBag`` takes them."""
    words = [[zlib.crc32(word.encode()) % TEXT_BUCKETS for word in re.findall(r"\w+", text.lower())] for text in texts]
    offsets = torch.tensor([0, *(len(row) for row in words[:-1])], device=device).cumsum(0)
    return torch.tensor([bucket for row in words for bucket in row], dtype=torch.long, device=device), offsets


def save_network(network: PreferenceNetwork, folder: Path) -> None:
    """Write weights and sizes into an existing folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    artifacts.write_json(folder / CONFIG, asdict(network.config))


def load_network(folder: Path) -> PreferenceNetwork:
    """Read what :func:`save_network` wrote; in evaluation mode.

    Raises:
        UserError: the folder holds no network, a damaged one, or one whose backbone is not there.
    """
    try:
        sizes = artifacts.read_json(folder / CONFIG)
        backbone = sizes.pop("backbone", None)
        config = NetworkConfig(**sizes, backbone=BackboneConfig(**backbone) if backbone else None)
        network = PreferenceNetwork(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: holds no reward network ({error.filename or error}): run train_reward first"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: its reward network is damaged ({reason:.120}): run train_reward again") from None
    refuse_not_finite(network.state_dict().items(), folder / WEIGHTS)
    return network.eval().requires_grad_(False)
