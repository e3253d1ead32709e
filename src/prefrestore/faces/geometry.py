"""Where a face is, from its 68 landmarks; always the HQ face's, so that every comparison is paired.

Pixel coordinates have the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import dlib
import numpy as np

FRAME_SIZE = 256
"""Side, pixels, that smaller images are enlarged to (bicubic): dlib's networks saw no faces of 64 px."""

NUM_LANDMARKS = 68
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)

# dlib's detector box against the landmarks' spread (root mean square distance from their centre), the mean over 60
# aligned portraits: standard deviations 0.11 (side), 0.02 and 0.07 (centre). The predictor expects this very framing.
_BOX_SIDE = 2.83
_BOX_CENTRE = np.array([-0.08, -0.05])


@dataclass(frozen=True)
class Frame:
    """An image enlarged for analysis and the landmarks in its pixels."""

    image: np.ndarray  # [H', W', 3] uint8
    landmarks: np.ndarray  # [68, 2] float64
    scale: float


def rescale_points(points: np.ndarray, scale: float) -> np.ndarray:
    """Map pixel coordinates to those of the image resized by ``scale``."""
    return (points + 0.5) * scale - 0.5


def to_frame(image: np.ndarray, landmarks: np.ndarray) -> Frame:
    """Enlarge ``image`` [H, W, 3] uint8 so that its shorter side has at least ``FRAME_SIZE`` pixels."""
    height, width = image.shape[:2]
    scale = max(1.0, FRAME_SIZE / min(height, width))
    points = rescale_points(landmarks.astype(np.float64), scale)
    if scale == 1.0:
        return Frame(np.ascontiguousarray(image), points, scale)
    size = (round(width * scale), round(height * scale))
    return Frame(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), points, scale)


def is_known(landmarks: np.ndarray) -> bool:
    """Say whether all 68 points are there and finite."""
    return landmarks.shape == (NUM_LANDMARKS, 2) and bool(np.isfinite(landmarks).all())


def interocular(landmarks: np.ndarray) -> float:
    """Return the distance between the eyes' centres, pixels."""
    return float(np.linalg.norm(landmarks[LEFT_EYE].mean(0) - landmarks[RIGHT_EYE].mean(0)))


def face_box(landmarks: np.ndarray) -> dlib.rectangle:
    """Return the box that dlib's detector would draw around these landmarks."""
    centre = landmarks.mean(0)
    spread = np.sqrt(((landmarks - centre) ** 2).sum(1).mean())
    low = centre + spread * (_BOX_CENTRE - _BOX_SIDE / 2)
    high = low + spread * _BOX_SIDE
    return dlib.rectangle(*(round(float(value)) for value in (*low, *high)))


def as_dlib_shape(landmarks: np.ndarray) -> dlib.full_object_detection:
    """Return the landmarks as dlib's own type."""
    points = [dlib.point(round(float(x)), round(float(y))) for x, y in landmarks]
    return dlib.full_object_detection(face_box(landmarks), points)
