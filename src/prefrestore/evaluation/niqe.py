"""NIQE (Mittal, Soundararajan, Bovik 2013): do patches have the statistics of sharp pictures? Fitted on HQ faces.

The published parameters come from large photographs in patches of 96 px, which faces of 64 px do not have; so patches
are a quarter of the side here, and the model is fitted on the run's own HQ faces. Values do not compare with published
ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.special import gamma

PATCHES = 4
"""Patches along a side."""
SHARP_SHARE = 0.75
"""Patches with at least this share of a picture's highest local deviation are fitted (the paper's T)."""

_WINDOW, _SIGMA = 7, 7 / 6
_LUMA = np.array([0.299, 0.587, 0.114])
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class NaturalModel:
    """A Gaussian over the features of sharp patches."""

    mean: np.ndarray  # [36]
    covariance: np.ndarray  # [36, 36]


def fit_natural_model(hq: np.ndarray) -> NaturalModel:
    """Fit the model to sharp patches of pictures [N, H, W, 3] uint8."""
    rows = []
    for image in hq:
        features, deviation = patch_features(image)
        rows.append(features[deviation >= SHARP_SHARE * deviation.max()])
    stacked = np.concatenate(rows)
    return NaturalModel(stacked.mean(0), np.cov(stacked, rowvar=False))


def niqe(image: np.ndarray, model: NaturalModel) -> float:
    """Return the distance of a picture's patches to the model (eq. 10); lower is more natural."""
    features, _ = patch_features(image)
    gap = features.mean(0) - model.mean
    pooled = (model.covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(gap @ np.linalg.pinv(pooled) @ gap))


def patch_features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [16, 36] of all patches at two scales, and their mean local deviation [16]."""
    luma = image.astype(np.float64) @ _LUMA
    half = cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA)
    scales = [_normalise(scale) for scale in (luma, half)]
    features = [_features(_patches(normal)) for normal, _ in scales]
    return np.concatenate(features, axis=1), _patches(scales[0][1]).mean((1, 2))


def _normalise(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean-subtracted, contrast-normalised values and the local deviation, for luma of 0 to 255."""
    mean = cv2.GaussianBlur(luma, (_WINDOW, _WINDOW), _SIGMA)
    deviation = np.sqrt(np.maximum(cv2.GaussianBlur(luma * luma, (_WINDOW, _WINDOW), _SIGMA) - mean * mean, 0))
    return (luma - mean) / (deviation + 1), deviation


def _patches(picture: np.ndarray) -> np.ndarray:
    """Cut [H, W] into 16 patches [16, h, w]; what does not divide by four is left out."""
    height, width = (side // PATCHES for side in picture.shape)
    whole = picture[: height * PATCHES, : width * PATCHES]
    return whole.reshape(PATCHES, height, PATCHES, width).swapaxes(1, 2).reshape(-1, height, width)


def _features(patches: np.ndarray) -> np.ndarray:
    """Return the features [P, 18] of normalised patches [P, h, w] at one scale."""
    shape, left, right = fit_asymmetric(patches)
    found = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = fit_asymmetric(patches * np.roll(patches, shift, (1, 2)))
        scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
        mean = (right - left) * scale * gamma(2 / shape) / gamma(1 / shape)
        found += [shape, mean, left**2, right**2]
    return np.stack(found, axis=1)


def fit_asymmetric(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit asymmetric generalised Gaussians by moments (Lasmar et al. 2009) to patches [P, h, w].

    Returns:
        Shape, left and right deviation, each [P]; a patch that lies on one side only has the largest shape.
    """
    power = np.mean(values**2, axis=(1, 2))
    left = _one_sided(np.minimum(values, 0))
    right = _one_sided(np.maximum(values, 0))
    two_sided = (left > 0) & (right > 0)
    skew = np.where(two_sided, left, 1.0) / np.where(two_sided, right, 1.0)
    ratio = np.mean(np.abs(values), axis=(1, 2)) ** 2 / np.where(two_sided, power, 1.0)
    wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    return np.where(two_sided, np.interp(wanted, _RATIOS, _SHAPES), _SHAPES[-1]), left, right


def _one_sided(values: np.ndarray) -> np.ndarray:
    """Return the root mean square of the values that are not zero, [P]; zero where there are none."""
    count = np.count_nonzero(values, axis=(1, 2))
    return np.sqrt((values**2).sum((1, 2)) / np.maximum(count, 1))
