"""Drawing in frame coordinates at any resolution: anti-aliased fills and strokes, planar blending."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits.anatomy import FRAME

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_SHIFT = 4
_FIXED = 1 << _SHIFT


class Raster:
    """A window of a picture that shows the 512 px frame at `size` pixels; by default the whole picture.

    Attributes: `scale` pixels per frame pixel, `top` and `left` the window's first pixel, `shape` its height and width.
    """

    __slots__ = ("_origin", "_step", "left", "scale", "shape", "size", "top")

    def __init__(self, size: int, top: int = 0, left: int = 0, shape: tuple[int, int] | None = None) -> None:
        self.size, self.top, self.left = size, top, left
        self.shape = (size, size) if shape is None else shape
        self.scale = size / FRAME
        self._step = np.float32(self.scale * _FIXED)
        self._origin = np.array([_FIXED * (left + 0.5), _FIXED * (top + 0.5)], np.float32)

    def window(self, points: Floats, margin: float) -> Raster:
        """Return the part of this window around frame `points` [N, 2], `margin` frame pixels wider."""
        left, top = points.min(0).tolist()
        right, bottom = points.max(0).tolist()
        return self.box(left - margin, top - margin, right + margin, bottom + margin)

    def box(self, left: float, top: float, right: float, bottom: float) -> Raster:
        """Return the part of this window that shows a rectangle of the frame."""
        height, width = self.shape
        row, column = max(self.top, math.floor(top * self.scale)), max(self.left, math.floor(left * self.scale))
        last_row = min(self.top + height, math.ceil(bottom * self.scale))
        last_column = min(self.left + width, math.ceil(right * self.scale))
        return Raster(self.size, row, column, (last_row - row, last_column - column))

    def of(self, planes: Floats) -> Floats:
        """Return the view of whole-picture `planes` [..., S, S] in this window."""
        height, width = self.shape
        return planes[..., self.top : self.top + height, self.left : self.left + width]

    def cut(self, planes: Floats, outer: Raster) -> Floats:
        """Return the view in this window of `planes` [..., h, w] that cover the window `outer`."""
        top, left, (height, width) = self.top - outer.top, self.left - outer.left, self.shape
        return planes[..., top : top + height, left : left + width]

    def at(self, point: Floats) -> tuple[int, int]:
        """Return row and column in the window of the pixel nearest to a frame point, kept inside."""
        column, row = point.tolist()
        height, width = self.shape
        return (min(max(int(row * self.scale) - self.top, 0), height - 1),
                min(max(int(column * self.scale) - self.left, 0), width - 1))  # fmt: skip

    def axes(self) -> tuple[Floats, Floats]:
        """Return x [1, w] and y [h, 1] of the pixels' centres in the frame."""
        height, width = self.shape
        x = np.arange(self.left + 0.5, self.left + width, dtype=np.float32)
        y = np.arange(self.top + 0.5, self.top + height, dtype=np.float32)
        step = np.float32(1.0 / self.scale)
        return (x * step)[None, :], (y * step)[:, None]

    def fixed(self, points: Floats) -> NDArray[np.int32]:
        """Return frame points as OpenCV's fixed-point pixel coordinates in the window."""
        return np.rint(points * self._step - self._origin).astype(np.int32)

    def blank(self) -> Bytes:
        """Return an empty mask."""
        return np.zeros(self.shape, np.uint8)

    def fill(self, *outlines: Floats) -> Floats:
        """Return the union of filled outlines as coverage in [0, 1], [h, w]."""
        mask = self.blank()
        for outline in outlines:
            cv2.fillPoly(mask, [self.fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
        return to_float(mask)

    def strokes(self, target: Bytes, lines: Sequence[Floats] | Floats, width: float, value: float = 255.0,
                least: float = 0.12) -> None:  # fmt: skip
        """Draw open lines of `width` frame pixels into `target`; lines thinner than a pixel get fainter instead.

        They never get fainter than `least` of `value`: dense hairs cover as much as they do when drawn thinner.
        """
        pixels = width * self.scale
        faint = min(1.0, max(pixels, least))
        thickness = max(1, round(pixels))
        fixed = self.fixed(lines) if isinstance(lines, np.ndarray) else [self.fixed(line) for line in lines]
        cv2.polylines(target, list(fixed), False, float(value * faint), thickness, cv2.LINE_AA, _SHIFT)

    def smear(self, mask: Bytes, radius: float) -> Bytes:
        """Return a byte mask blurred by a small Gaussian of `radius` frame pixels."""
        sigma = radius * self.scale
        return mask if sigma < 0.3 else cv2.GaussianBlur(mask, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)

    def blur(self, image: Floats, radius: float) -> Floats:
        """Return `image` blurred by a Gaussian of `radius` frame pixels."""
        sigma = radius * self.scale
        return image if sigma < 0.3 else soften(image, sigma)


def to_float(mask: Bytes) -> Floats:
    """Return a byte mask as float32 in [0, 1]."""
    return mask * np.float32(1.0 / 255.0)


def soften(image: Floats, sigma: float) -> Floats:
    """Return a Gaussian blur; wide ones are computed at a lower resolution, where they look the same."""
    if sigma < 3.0:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    factor = max(2, int(sigma // 1.6))
    small = cv2.resize(image, (max(4, width // factor), max(4, height // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def over(canvas: Floats, color: Floats, alpha: Floats) -> None:
    """Blend `color` ([3], [3, 1, 1] or [3, H, W]) over the planar `canvas` [3, H, W] with `alpha` [H, W], in place."""
    layer = color.reshape(3, 1, 1) if color.ndim == 1 else color
    canvas += (layer - canvas) * alpha


def linear(red: float, green: float, blue: float) -> Floats:
    """Return an 8-bit sRGB colour as linear light, [3]; gamma 2 stands for the sRGB curve throughout."""
    return (np.array([red, green, blue], np.float32) / 255.0) ** 2
