"""Spoilt copies of candidates: what any judge must like less, and what the sensitivity table measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

Spoil = Callable[[np.ndarray, float], np.ndarray]
"""Maps an image [H, W, 3] uint8 and a strength in [0, 1] to a spoilt copy."""


def blur(image: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian blur, standard deviation 0.6 to 2 pixels."""
    return cv2.GaussianBlur(image, (0, 0), 0.6 + 1.4 * strength)


def jpeg(image: np.ndarray, strength: float) -> np.ndarray:
    """JPEG at quality 50 down to 10."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(50 - 40 * strength)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def colour_shift(image: np.ndarray, strength: float) -> np.ndarray:
    """Red up and blue down by 12 to 50 levels."""
    shift = 12 + 38 * strength
    return np.clip(image + np.array([shift, 0.0, -shift]), 0, 255).astype(np.uint8)


def noise(image: np.ndarray, strength: float) -> np.ndarray:
    """A fixed pattern of Gaussian noise, standard deviation 5 to 25 levels."""
    pattern = np.random.default_rng(0).standard_normal(image.shape)
    return np.clip(image + (5 + 20 * strength) * pattern, 0, 255).astype(np.uint8)


SPOILERS: Mapping[str, Spoil] = {"blur": blur, "jpeg": jpeg, "colour_shift": colour_shift, "noise": noise}


def spoil(image: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a copy of ``image`` spoilt in one random way, or ``other``, a restoration of somebody else."""
    kind = int(random.integers(len(SPOILERS) + 1))
    if kind == len(SPOILERS):
        return other
    return list(SPOILERS.values())[kind](image, float(random.random()))
