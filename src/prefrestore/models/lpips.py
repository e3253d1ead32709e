"""LPIPS (Zhang et al., arXiv 1801.03924): the distance of two images in the features of a VGG-16, version 0.1.

The weights are published, but no part of this project. To make the file that :func:`load_lpips` reads, take the
convolutions of torchvision's ``vgg16`` (names ``features.0.weight``, ...) and the five linear layers of the authors'
``lpips/weights/v0.1/vgg.pth`` (``lin0.model.1.weight``, ...), or the state dict of a whole ``lpips.LPIPS(net="vgg")``::

    published = {**torch.load("vgg16.pth", weights_only=True), **torch.load("vgg.pth", weights_only=True)}
    save_lpips(from_published(published), Path("lpips.safetensors"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from prefrestore.errors import UserError

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)
SMALLEST_SIDE = 2 ** (len(WIDTHS) - 1)
"""Pixels; of a smaller image nothing is left after four poolings."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The authors' normalisation of RGB in [-1, 1]."""
_PUBLISHED_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Place of each convolution among VGG-16's layers, by which it is named where it is published."""
_CONVOLUTION = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
_HEAD = re.compile(r"(?:lin|lins\.)(\d)\.model\.1\.weight")


class Lpips(nn.Module):
    """The network: thirteen convolutions in five blocks, and a weight for each channel that a block ends in."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        ends = [width for width, depth in zip(WIDTHS, DEPTHS, strict=True) for _ in range(depth)]
        sizes = zip([3, *ends[:-1]], ends, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in sizes)
        self.heads = nn.ParameterList(torch.full((width,), 1 / width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the five feature maps [N, C, h, w] of images [N, 3, H, W] in [0, 1], each at half the side before."""
        hidden = (2 * images - 1 - self.shift) / self.scale
        layers = iter(self.convolutions)
        for block, depth in enumerate(DEPTHS):
            hidden = functional.max_pool2d(hidden, 2) if block else hidden
            for _ in range(depth):
                hidden = functional.relu(next(layers)(hidden))
            yield hidden

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Return the distance [N] of images [N, 3, H, W] in [0, 1] (eq. 1); 0 for equal ones, gradients flow.

        Raises:
            ValueError: the images are smaller than 16 px.
        """
        if min(hq.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"LPIPS needs images of {SMALLEST_SIDE} px or more, these have {tuple(hq.shape[-2:])}")
        return self.distance(self.features(restored), self.features(hq))

    def distance(self, first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
        """Return the distance [N] of two images' :meth:`features`, so that one side can be computed once."""
        return self.distance_of_units(map(_unit, first), map(_unit, second))

    def units(self, images: Tensor) -> Iterator[Tensor]:
        """Yield :meth:`features`, each place's channels scaled to length 1: all that a distance needs of an image."""
        return map(_unit, self.features(images))

    def distance_of_units(self, first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
        """Return the distance [N] of two images' :meth:`units`."""
        terms = [
            torch.einsum("nchw,c->n", (a - b).square(), head) / (a.shape[2] * a.shape[3])
            for head, a, b in zip(self.heads, first, second, strict=True)
        ]
        return torch.stack(terms).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Scale each place's channels to length 1."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of :class:`Lpips` from tensors by their published names; others are left out.

    Args:
        tensors: ``features.<layer>.weight`` and ``.bias`` as torchvision names VGG-16's convolutions, or
            ``net.slice<block>.<layer>...`` as the authors do; ``lin<block>.model.1.weight`` [1, C, 1, 1].

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if (match := _CONVOLUTION.fullmatch(name)) and int(match[1]) in _PUBLISHED_INDICES:
            found[f"convolutions.{_PUBLISHED_INDICES.index(int(match[1]))}.{match[2]}"] = value
        elif match := _HEAD.fullmatch(name):
            found[f"heads.{match[1]}"] = value.flatten()
    _check(found, "published LPIPS weights")
    return found


def _check(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a state dict that is not that of :class:`Lpips`."""
    with torch.device("meta"):
        wanted = Lpips().state_dict()
    for name, expected in wanted.items():
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing: see prefrestore.models.lpips for what belongs in it")
        if tensors[name].shape != expected.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(expected.shape)}"
            raise UserError(f"{where}: tensor {name} has the shape {shapes}: take the weights of VGG-16, version 0.1")


def save_lpips(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict of :class:`Lpips` to a safetensors file of 32-bit numbers."""
    save_file({name: value.detach().cpu().float().contiguous() for name, value in tensors.items()}, path)


def load_lpips(path: Path) -> Lpips:
    """Read the network, for inference, from a file that :func:`save_lpips` wrote.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise UserError(f"LPIPS weights {path}: no such file: prefrestore.models.lpips says how to make it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"LPIPS weights {path}: is damaged ({error}): make it again") from None
    _check(tensors, f"LPIPS weights {path}")
    network = Lpips()
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)
