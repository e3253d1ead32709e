"""The preference network: LQ image, candidate and text in, one logit per ensemble member out; it never sees HQ."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from prefrestore import artifacts

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TEXT_BUCKETS = 256
GROUP_CHANNELS = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        width: channels of the first level; doubles per level.
        levels: resolutions looked at, the first at half the image's size.
        members: independent networks whose mean is the score and whose spread is the uncertainty.
        text_size: numbers a text is embedded in.
    """

    width: int
    levels: int
    members: int
    text_size: int


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


class Member(nn.Module):
    """One network of the ensemble."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(config.levels)]
        self.stem = nn.Conv2d(9 * 4, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.text = nn.EmbeddingBag(TEXT_BUCKETS, config.text_size, mode="mean")
        self.head = nn.Sequential(
            nn.Linear(2 * sum(widths) + config.text_size, widths[-1]), nn.SiLU(), nn.Linear(widths[-1], 1)
        )

    def forward(self, lq: Tensor, candidate: Tensor, words: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits [N] of candidates [N, 3, H, W] for LQ images of the same shape."""
        stacked = torch.cat([2 * lq - 1, 2 * candidate - 1, 4 * (candidate - lq)], dim=1)
        features = self.stem(functional.pixel_unshuffle(stacked, 2))
        pooled = []
        for level, block in enumerate(self.blocks):
            features = block(features if level == 0 else self.downs[level - 1](features))
            # mean and spread: how much of a texture there is, and how unevenly it lies
            pooled += [features.mean(dim=(2, 3)), features.std(dim=(2, 3), correction=0)]
        return self.head(torch.cat([*pooled, self.text(*words)], dim=1)).squeeze(1)


class PreferenceNetwork(nn.Module):
    """The ensemble; ``temperature`` and ``tie_margin`` turn logits into probabilities."""

    temperature: Tensor
    offset: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Member(config) for _ in range(config.members))
        self.tie_logit = nn.Parameter(torch.tensor(-1.0))
        self.register_buffer("temperature", torch.tensor(1.0))
        # Bradley-Terry fixes differences only; zero is put at the mean of the candidates that were judged
        self.register_buffer("offset", torch.zeros(config.members))

    @property
    def tie_margin(self) -> Tensor:
        """Difference of logits below which ties are likely; positive."""
        return functional.softplus(self.tie_logit)

    def forward(self, lq: Tensor, candidate: Tensor, texts: Sequence[str]) -> Tensor:
        """Return logits [members, N] for images [N, 3, H, W] in [0, 1] and N texts."""
        words = hash_words(texts, lq.device)
        return torch.stack([member(lq, candidate, words) for member in self.members])


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
    """Read what :func:`save_network` wrote; in evaluation mode."""
    network = PreferenceNetwork(NetworkConfig(**artifacts.read_json(folder / CONFIG)))
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval().requires_grad_(False)
