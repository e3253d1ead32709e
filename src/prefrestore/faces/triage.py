"""Which faces of a photograph are better left alone."""

from __future__ import annotations

import numpy as np

from prefrestore.data.images import sharpness
from prefrestore.faces.alignment import LEFT_EYE, RIGHT_EYE, crop

SMALLEST = 32
"""Side of a face's square in the photograph, pixels, below which there is nothing to restore from."""
SHARP = 0.8
"""Sharpness (variance of the Laplacian) of a good face, times the side it is looked at; chosen by eye."""
TURNED = 0.5
"""How far the nose may be off the middle between the eyes, in distances of the eyes: faces that look to the side."""
NOSE = 30


def reason_to_leave(image: np.ndarray, square: np.ndarray, landmarks: np.ndarray, size: int) -> str | None:
    """Return why a face should be left as it is, or None.

    Args:
        image: 8-bit RGB [H, W, 3].
        square: corners of its FFHQ square [4, 2].
        landmarks: [68, 2].
        size: side at which the model restores.
    """
    side = float(np.linalg.norm(square[1] - square[0]))
    if side < SMALLEST:
        return f"too small ({side:.0f} px)"
    if turn(landmarks) > TURNED:
        return "turned too far to the side"
    if side >= size and sharpness(crop(image, square, size)) > SHARP / size:
        return "sharp already"
    return None


def turn(landmarks: np.ndarray) -> float:
    """Return how far the nose's tip is off the middle between the eyes, along them, in distances of the eyes."""
    first, second = landmarks[RIGHT_EYE].mean(0), landmarks[LEFT_EYE].mean(0)
    along = second - first
    return float(abs((landmarks[NOSE] - (first + second) / 2) @ along) / max(float(along @ along), 1e-6))
