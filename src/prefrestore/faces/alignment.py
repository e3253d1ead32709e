"""Alignment of faces to the FFHQ convention (Karras et al. 2019, arXiv 1812.04948, appendix A).

A crop is a rotated square given by the eye centres and the mouth corners. Points are pixel centres: the first pixel of
an image is (0, 0), its corner (-0.5, -0.5).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

RIGHT_EYE, LEFT_EYE, MOUTH_CORNERS = slice(36, 42), slice(42, 48), [48, 54]  # as seen in the picture: left, right
EYE_FACTOR, MOUTH_FACTOR, MOUTH_SHIFT = 2.0, 1.8, 0.1
ALIGNED_TOLERANCE = 0.04  # of the side: FFHQ-aligned portraits, measured again, deviate by 0.026 at most
MAX_SUPERSAMPLING = 4
BLUR_SHARE = 0.02  # sigma of the blur of what lies outside the photograph, of the side


def ffhq_square(landmarks: np.ndarray) -> np.ndarray:
    """Return the corners of the FFHQ crop, clockwise from top left, float64 [4, 2].

    Args:
        landmarks: [68, 2] x, y in pixels.
    """
    points = landmarks.astype(np.float64)
    first, second = points[RIGHT_EYE].mean(0), points[LEFT_EYE].mean(0)
    eyes, mouth = (first + second) / 2, points[MOUTH_CORNERS].mean(0)
    between, down = second - first, mouth - eyes
    across = between + np.array([down[1], -down[0]])
    half = max(EYE_FACTOR * np.linalg.norm(between), MOUTH_FACTOR * np.linalg.norm(down))
    x_axis = across / max(np.linalg.norm(across), 1e-6) * half
    y_axis = np.array([-x_axis[1], x_axis[0]])
    centre = eyes + MOUTH_SHIFT * down
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    return centre + corners @ np.stack([x_axis, y_axis])


def frame(height: int, width: int) -> np.ndarray:
    """Return the corners of the largest square in the middle of an image, clockwise from top left, float64 [4, 2]."""
    side = min(height, width)
    left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
    return np.array([(left, top), (left + side, top), (left + side, top + side), (left, top + side)])


def is_aligned(square: np.ndarray, height: int, width: int) -> bool:
    """Tell whether a crop is, but for the noise of landmarks, the whole of a square image already."""
    if height != width:
        return False
    return bool(np.abs(square - frame(height, width)).max() <= ALIGNED_TOLERANCE * width)


def crop_matrix(square: np.ndarray, size: int) -> np.ndarray:
    """Return the similarity from photograph pixels to crop pixels, float64 [2, 3].

    Args:
        square: corners [4, 2], clockwise from top left.
        size: side of the crop, pixels.
    """
    x_axis = square[1] - square[0]
    y_axis = square[3] - square[0]
    scale = size / float(x_axis @ x_axis)
    linear = np.stack([x_axis, y_axis]) * scale
    return np.concatenate([linear, (-0.5 - linear @ square[0])[:, None]], axis=1)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [N, 2] by a matrix [2, 3]; float32."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def crop(image: np.ndarray, square: np.ndarray, size: int) -> np.ndarray:
    """Cut a square out of an image without aliasing; what lies outside is reflected and blurred.

    Args:
        image: 8-bit RGB [H, W, 3].
        square: corners [4, 2], clockwise from top left.
        size: side of the result, pixels.

    Returns:
        8-bit RGB [size, size, 3].
    """
    factor = float(np.linalg.norm(square[1] - square[0])) / size
    image, square = _shrink(image, square, factor / MAX_SUPERSAMPLING)
    fine = size * min(MAX_SUPERSAMPLING, max(1, math.ceil(factor)))
    matrix = crop_matrix(square, fine)
    flags = cv2.INTER_CUBIC if factor < 1 else cv2.INTER_LINEAR
    warped = cv2.warpAffine(image, matrix, (fine, fine), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    inside = cv2.warpAffine(np.ones(image.shape[:2], np.float32), matrix, (fine, fine))
    if fine > size:
        warped = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA)
    return _blur_outside(warped, inside)


def _shrink(image: np.ndarray, square: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Make a much too large photograph smaller by area first."""
    if factor <= 1:
        return image, square
    small = cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    ratio = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
    return small, (square + 0.5) * ratio - 0.5


def _blur_outside(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    if inside.min() > 0.5:
        return image
    sigma = max(1.0, BLUR_SHARE * image.shape[0])
    outside = cv2.GaussianBlur(1 - inside, None, sigma)[:, :, None]
    weight = np.clip(2 * outside, 0, 1) * (inside[:, :, None] < 1)
    blurred = cv2.GaussianBlur(image, None, 2 * sigma).astype(np.float32)
    return np.rint(image * (1 - weight) + blurred * weight).astype(np.uint8)
