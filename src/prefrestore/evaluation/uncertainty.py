"""Where independent samples of one LQ disagree, and whether that tells the true error."""

from __future__ import annotations

import math

import numpy as np

_ROUNDING_VARIANCE = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits: the least that a pixel's value can be known to."""
_LATENT_ROUNDING = 1e-6
"""Variance that a latent coordinate, itself of about unit variance, can be known to."""


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
    return _gaussian_entropy(samples.astype(np.float64) / 255, _ROUNDING_VARIANCE)


def latent_entropy(latents: np.ndarray) -> np.ndarray:
    """Return the same per coordinate of latents [S, ..., C, h, w], with q = 1e-6, [...]; NaN with fewer than two seeds.

    The decoder has no part in it: what it paints alike whatever the latent says lowers :func:`sample_entropy` alone.
    """
    return _gaussian_entropy(latents.astype(np.float64), _LATENT_ROUNDING)


def identity_spread(embeddings: np.ndarray) -> np.ndarray:
    """Return the mean distance between a face's samples, over all pairs of them, in dlib's space, [N].

    Args:
        embeddings: [S, N, 128].

    Returns:
        0.6 is dlib's same-person threshold; NaN with fewer than two seeds.
    """
    first, second = np.triu_indices(len(embeddings), 1)
    if not len(first):
        return np.full(embeddings.shape[1], np.nan)
    distances: np.ndarray = np.linalg.norm(embeddings[first] - embeddings[second], axis=-1)
    return distances.mean(0)


def _gaussian_entropy(values: np.ndarray, rounding: float) -> np.ndarray:
    """Return the mean over the last three axes of ``1/2 log(2 pi e (variance over the first axis + rounding))``."""
    if len(values) < 2:
        return np.full(values.shape[1:-3], np.nan)
    entropy: np.ndarray = 0.5 * np.log(2 * math.pi * math.e * (values.var(axis=0, ddof=1) + rounding))
    return entropy.mean((-3, -2, -1))
