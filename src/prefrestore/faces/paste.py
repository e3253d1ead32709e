"""Putting a restored face back where it was cut out: colours matched, edges feathered, the rest untouched."""

from __future__ import annotations

import cv2
import numpy as np

from prefrestore.faces.alignment import crop_matrix

EXPONENT = 4.0
"""Of the superellipse inside which the face is replaced: nearly the square that was restored, without its corners."""
FEATHER = 0.3
"""Share of the way from the middle to the rim over which the restored face fades out."""
COLOUR_SIGMA = 1 / 8
"""Blur, in sides of the crop, beyond which colours are the photograph's."""


def match_colours(restored: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return a restored face with the coarse colours of the crop it was made from, float32 [S, S, 3] in [0, 255].

    Args:
        restored: [S, S, 3] uint8.
        before: the crop, [S, S, 3] uint8.
    """
    sigma = COLOUR_SIGMA * len(restored)
    sharp, coarse = restored.astype(np.float32), before.astype(np.float32)
    gap = cv2.GaussianBlur(coarse, (0, 0), sigma) - cv2.GaussianBlur(sharp, (0, 0), sigma)
    return np.clip(sharp + gap, 0, 255)


def mask(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return how much of the restored face shows: 1 in the middle, 0 from the rim of the superellipse on.

    Args:
        across: place from the crop's left (-1) to its right (1).
        down: from its top (-1) to its bottom (1).
    """
    radius = (np.abs(across) ** EXPONENT + np.abs(down) ** EXPONENT) ** (1 / EXPONENT)
    way = np.clip((1 - radius) / FEATHER, 0, 1)
    return way * way * (3 - 2 * way)


def paste(photograph: np.ndarray, face: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return a copy of a photograph with a face in a square; pixels that the mask leaves out are the same to the bit.

    Args:
        photograph: [H, W, 3], uint8 or uint16.
        face: [S, S, 3], values in [0, 255].
        square: corners in the photograph, [4, 2], clockwise from top left.
    """
    height, width = photograph.shape[:2]
    left, top = np.maximum(np.floor(square.min(0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(square.max(0)) + 1, (width, height)).astype(int)
    result = photograph.copy()
    if left >= right or top >= bottom:
        return result
    face = _not_larger(face.astype(np.float32), square)
    size = len(face)
    matrix = crop_matrix(square, size)
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    place = (int(right - left), int(bottom - top))
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(face, matrix, place, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    x, y = np.meshgrid(np.arange(place[0]), np.arange(place[1]))
    inside = (matrix[:, :1, None] * x + matrix[:, 1:2, None] * y + matrix[:, 2:, None] + 0.5) / size * 2 - 1
    weight = mask(inside[0], inside[1])[..., None].astype(np.float32)
    part = result[top:bottom, left:right]
    full = float(np.iinfo(photograph.dtype).max)
    blended = part * (1 - weight) + np.clip(warped, 0, 255) * (full / 255) * weight
    result[top:bottom, left:right] = np.where(weight > 0, np.rint(np.clip(blended, 0, full)), part)
    return result


def _not_larger(face: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Make a face smaller by area if its square in the photograph is smaller: no aliasing."""
    side = max(1, round(float(np.linalg.norm(square[1] - square[0]))))
    return face if side >= len(face) else cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
