"""Ranges of drawn numbers, at an image size and a severity, and drawing from them.

Rule for image sizes other than 512 px, with r = size / 512, per parameter:

* blur widths (sigma, motion length) and kernel radii scale with r; the cut-off of a sinc kernel scales with 1 / r;
* resize factors: the range is multiplied by r, so that LQ images keep the recipe's absolute size in pixels, and never
  falls below 1; an end that is 1 or less at 512 px (no down-sampling, or enlargement) stays as it is;
* noise, JPEG quality and colour do not scale.

A severity draws every range from one of its thirds: mild, moderate or severe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from prefrestore.data.operations import Severity

BASE_SIZE = 512
THIRDS = {"mild": 0, "moderate": 1, "severe": 2}
Range = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Extent:
    """The image size and severity that ranges are meant for."""

    height: int
    width: int
    severity: Severity

    @property
    def size(self) -> int:
        """Return the shorter side: what a face's size goes with."""
        return min(self.height, self.width)

    @property
    def ratio(self) -> float:
        """Return size over the size that recipes are written for."""
        return self.size / BASE_SIZE

    def third(self, bounds: Range, *, worst: Literal["high", "low"] = "high") -> Range:
        """Return the part of a range that the severity draws from."""
        if self.severity == "any":
            return bounds
        low, high = bounds
        position = THIRDS[self.severity] if worst == "high" else 2 - THIRDS[self.severity]
        return low + (high - low) * position / 3, low + (high - low) * (position + 1) / 3

    def scaled(self, bounds: Range) -> Range:
        """Return a range of lengths at this size."""
        return bounds[0] * self.ratio, bounds[1] * self.ratio

    def kernel_size(self, size: int) -> int:
        """Return the odd side of a kernel whose radius scales with the image."""
        return 2 * max(1, math.ceil(size // 2 * self.ratio)) + 1

    def kernel_sizes(self, sizes: tuple[int, ...]) -> Range:
        """Return the smallest and the largest of some kernels' sides."""
        return self.kernel_size(min(sizes)), self.kernel_size(max(sizes))


@dataclass(frozen=True)
class Draw(Extent):
    """Random choices for an image."""

    rng: np.random.Generator

    def number(self, bounds: Range) -> float:
        """Return a number drawn uniformly from a range."""
        return float(self.rng.uniform(*bounds))

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return bool(self.rng.uniform() < probability)

    def choice(self, weights: Mapping[T, float]) -> T:
        """Return a key, drawn in proportion to its weight."""
        shares = np.array(list(weights.values()))
        return list(weights)[int(self.rng.choice(len(shares), p=shares / shares.sum()))]


def merge_bounds(parts: Iterable[Mapping[str, Range]]) -> dict[str, Range]:
    """Return the smallest ranges that hold all the given ones."""
    merged: dict[str, Range] = {}
    for name, (low, high) in (item for part in parts for item in part.items()):
        known = merged.get(name, (low, high))
        merged[name] = min(low, known[0]), max(high, known[1])
    return merged
