"""The simulated annotator: a noisy Bradley-Terry choice over fidelity to HQ.

It stands in for people at small sizes and is marked ``simulated`` in every record. Qualities of each candidate are
measured against HQ, put on one scale and weighed into a utility; the reward and the judges beside it have oracles of
different weights. A pair is decided by the Rao-Kupper model,

    P(a) = sigmoid((u_a - u_b - tie_margin) / temperature),   P(b) likewise,   P(tie) = 1 - P(a) - P(b),

that is, by the sign of ``u_a - u_b`` plus logistic noise, with a tie where it is below ``tie_margin``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prefrestore.rewards.sharpness import high_band_energy
from prefrestore.rewards.structure import low_band_distance, ms_ssim, window_mean
from prefrestore.runtime import seeding

GRADIENT_CONSTANT = 0.0026
"""Stabiliser of the gradient similarity for images in [0, 1] (GMSD, Xue et al. 2014)."""

CONTRAST_CONSTANT = 0.03**2
"""SSIM's second stabiliser for images in [0, 1]."""

PSNR_CEILING = 60.0

SMALLEST_ENERGY = 1e-9
"""Below what rounding to 8 bits puts into the high band, so that the logarithm of a flat image is finite."""


def qualities(restored: Tensor, hq: Tensor) -> dict[str, Tensor]:
    """Measure candidates [N, 3, H, W] against HQ; each value [N], larger is better.

    ``psnr`` in dB (at most 60); ``structure`` is MS-SSIM; ``edges`` is the mean gradient similarity; ``sharpness`` is
    minus the absolute log ratio of high-band energies (``rewards.sharpness``): blur and false texture both cost;
    ``colour`` is minus the mean difference of smoothed chroma, ``texture`` the mean similarity of local standard
    deviations, ``low_band`` minus the distance of averages over 4, 8 and 16 pixels.
    """
    error = (restored - hq).square().mean(dim=(1, 2, 3)).clamp(min=10 ** (-PSNR_CEILING / 10))
    return {
        "psnr": -10 * error.log10(),
        "structure": ms_ssim(restored, hq),
        "edges": gradient_similarity(restored, hq),
        "sharpness": -(_high_band(restored) / _high_band(hq)).log().abs(),
        "colour": -(smooth_chroma(restored) - smooth_chroma(hq)).abs().mean(dim=(1, 2, 3)),
        "texture": texture_similarity(restored, hq),
        "low_band": -low_band_distance(restored, hq),
    }


def _high_band(images: Tensor) -> Tensor:
    energy = high_band_energy(images.permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(energy).clamp(min=SMALLEST_ENERGY)


def gradient_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean similarity [N] of Prewitt gradient magnitudes of the luma (GMSD's map, its mean)."""
    one, two = gradient_magnitude(first), gradient_magnitude(second)
    return ((2 * one * two + GRADIENT_CONSTANT) / (one**2 + two**2 + GRADIENT_CONSTANT)).mean(dim=(1, 2))


def gradient_magnitude(images: Tensor) -> Tensor:
    """Return Prewitt gradient magnitudes [N, H - 2, W - 2] of the luma of images [N, 3, H, W]."""
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3).to(images) / 3
    kernels = torch.stack([across, across.T])[:, None]
    return functional.conv2d(luma(images), kernels).square().sum(dim=1).sqrt()


def smooth_chroma(images: Tensor) -> Tensor:
    """Return red and blue less luma [N, 2, H - 10, W - 10], averaged under the Gaussian window of SSIM."""
    return window_mean(images[:, [0, 2]] - luma(images))


def texture_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean similarity [N] of the luma's local standard deviations (SSIM's contrast term alone)."""
    spreads = []
    for images in (luma(first), luma(second)):
        spreads.append((window_mean(images.square()) - window_mean(images).square()).clamp(min=0).sqrt())
    one, two = spreads
    return ((2 * one * two + CONTRAST_CONSTANT) / (one**2 + two**2 + CONTRAST_CONSTANT)).mean(dim=(1, 2, 3))


def luma(images: Tensor) -> Tensor:
    """Return BT.601 luma [N, 1, H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def pooled_std(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard deviation of ``values`` [N] within groups, pooled over groups; 1 where nothing varies."""
    _, group = np.unique(groups, return_inverse=True)
    means = np.bincount(group, weights=values) / np.bincount(group)
    spread = float(np.sqrt(np.mean((values - means[group]) ** 2)))
    return spread if spread > 0 else 1.0


def utilities(measured: Mapping[str, np.ndarray], weights: Mapping[str, float], groups: np.ndarray) -> np.ndarray:
    """Weigh qualities into utilities [N] whose pooled standard deviation within groups is one.

    Every quality is first divided by its own pooled standard deviation within groups: a weight then says how much the
    quality matters between restorations of one LQ image. Only differences within a group have meaning.
    """
    total = np.zeros(len(groups))
    for name, weight in weights.items():
        total += weight * measured[name] / pooled_std(measured[name], groups)
    return total / pooled_std(total, groups)


@dataclass(frozen=True)
class Showing:
    """A pair of candidates (row numbers) in the order in which it is shown."""

    a: int
    b: int


def draw_pairs(groups: Sequence[str], count: int, seed: int) -> list[Showing]:
    """Draw ``count`` distinct pairs within groups, spread evenly over groups, sides shuffled; fewer if there are fewer.

    Round r takes from every group the r-th pair of its own shuffled list, so no group is left behind.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    queues = [_shuffled_pairs(rows, seed, group) for group, rows in sorted(members.items())]
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:count]


def _shuffled_pairs(rows: Sequence[int], seed: int, group: str) -> list[Showing]:
    random = seeding.rng(seed, "pairs", group)
    pairs = [(a, b) for place, a in enumerate(rows) for b in rows[place + 1 :]]
    swap = random.integers(0, 2, len(pairs))
    return [Showing(*(pairs[k][::-1] if swap[k] else pairs[k])) for k in random.permutation(len(pairs))]


def choose(difference: float, temperature: float, tie_margin: float, random: np.random.Generator) -> str:
    """Return ``a``, ``b`` or ``tie`` for the utility difference ``u_a - u_b``."""
    noisy = difference + temperature * random.logistic()
    if abs(noisy) < tie_margin:
        return "tie"
    return "a" if noisy > 0 else "b"
