"""Structure: MS-SSIM and multi-scale low bands against HQ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from prefrestore.rewards.base import References

WINDOW, WINDOW_SIGMA = 11, 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2
LOW_BAND_DECAY = 15.0


class StructureReward:
    """Mean of MS-SSIM and ``exp(-15 d)``, d the low-band distance: in (0, 1], 1 for equal images.

    The exponential is that of LRPO's wavelet reward (reference-method 8.4), here over a Gaussian pyramid.
    """

    name = "structure"

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN without HQ."""
        if references.hq is None:
            return torch.full((len(restored),), torch.nan)
        similar = ms_ssim(restored, references.hq)
        near = torch.exp(-LOW_BAND_DECAY * low_band_distance(restored, references.hq))
        return (similar + near) / 2


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the multi-scale SSIM (Wang, Simoncelli, Bovik 2003) of images [N, 3, H, W] in [0, 1], per sample [N].

    Only the scales at which the 11-pixel window fits are used (two at 32 px, three at 64 px); their published
    exponents are scaled to sum to one. Negative factors count as zero.

    Raises:
        ValueError: the images are smaller than the window.
    """
    scales = usable_scales(min(first.shape[-2:]))
    weights = torch.tensor(SCALE_WEIGHTS[:scales], dtype=first.dtype, device=first.device)
    factors = []
    for scale in range(scales):
        luminance, contrast = ssim_terms(first, second)
        last = scale == scales - 1
        factors.append((luminance * contrast if last else contrast).mean(dim=(1, 2, 3)).clamp(min=0))
        first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
    return torch.stack(factors).pow((weights / weights.sum())[:, None]).prod(dim=0)


def usable_scales(side: int) -> int:
    """Return at how many dyadic scales the window fits into ``side`` pixels, at most five."""
    if side < WINDOW:
        raise ValueError(f"images of {side} px are smaller than the SSIM window of {WINDOW} px")
    return min(len(SCALE_WEIGHTS), (side // WINDOW).bit_length())


def ssim_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure maps [N, 3, h, w] of SSIM (Gaussian window, no padding)."""
    mean_1, mean_2 = window_mean(first), window_mean(second)
    variance_1 = window_mean(first * first) - mean_1 * mean_1
    variance_2 = window_mean(second * second) - mean_2 * mean_2
    covariance = window_mean(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1 * mean_1 + mean_2 * mean_2 + C1)
    contrast = (2 * covariance + C2) / (variance_1 + variance_2 + C2)
    return luminance, contrast


def window_mean(images: Tensor) -> Tensor:
    """Return local means [N, C, H - 10, W - 10] under the Gaussian window, where it fits wholly."""
    taps = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * WINDOW_SIGMA**2))
    taps = (taps / taps.sum()).to(images)
    channels = images.shape[1]
    rows = functional.conv2d(images, taps.expand(channels, 1, 1, WINDOW), groups=channels)
    return functional.conv2d(rows, taps[:, None].expand(channels, 1, WINDOW, 1), groups=channels)


def low_band_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean absolute difference [N] of averages over 4, 8 and 16 pixels, the three weighted equally."""
    levels = [functional.avg_pool2d(first - second, size).abs().mean(dim=(1, 2, 3)) for size in (4, 8, 16)]
    return torch.stack(levels).mean(dim=0)
