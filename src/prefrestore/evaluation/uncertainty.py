"""Where independent samples of one LQ disagree, and whether that tells the true error."""

from __future__ import annotations

import math

import numpy as np

_ROUNDING_VARIANCE = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits: the least that a pixel's value can be known to."""


def spread_map(samples: np.ndarray) -> np.ndarray:
    """Return the standard deviation over seeds of each pixel, channels averaged.

    Args:
        samples: [S, ..., H, W, 3] uint8, S seeds.

    Returns:
        [..., H, W] for values in [0, 1]; NaN with fewer than two seeds.
    """
    if len(samples) < 2:
        return np.full(samples.shape[1:-1], np.nan)
    return (samples.astype(np.float64) / 255).std(axis=0, ddof=1).mean(-1)


def sample_spread(samples: np.ndarray) -> np.ndarray:
    """Return the mean of :func:`spread_map` over the picture, [...]."""
    return spread_map(samples).mean((-2, -1))


def sample_entropy(samples: np.ndarray) -> np.ndarray:
    """Return the differential entropy per pixel and channel, nats, of a Gaussian with the seeds' variance, [...].

    ``mean 1/2 log(2 pi e (variance + q))`` with q the variance of 8-bit rounding, so that equal samples are finite.
    """
    if len(samples) < 2:
        return np.full(samples.shape[1:-3], np.nan)
    variance = (samples.astype(np.float64) / 255).var(axis=0, ddof=1) + _ROUNDING_VARIANCE
    return 0.5 * np.log(2 * math.pi * math.e * variance).mean((-3, -2, -1))
