"""Resampling, correlation with a kernel, and both in one go.

Making a blurred image smaller looks at few of its pixels, so most of the blur would never be seen. Both steps are
linear and resampling separates into rows and columns. A kernel that is a sum of outer products ``sum_k c_k d_k'``
acts together with the resampling R as ``sum_k (R C_k) X (R D_k)'``, C_k and D_k being correlations with the factors:
only the products R C_k are formed, and only pixels that exist in the result are computed.
"""

from __future__ import annotations

import math
import threading
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from prefrestore.data.operations import Resize

INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
TOLERANCE = 2e-3  # bound of the error, of full scale: half of one 8-bit level; found: an eighth of one
REACH = 64  # input pixels that a block sees beside those under a kernel, about
BLOCK_COLUMNS = 16  # output columns of a block in the second pass: fastest, measured
BLOCK_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # output rows of a block in the first pass
LANES = 4  # rows of a matrix that BLAS works on together
HALF_SPEED = 7  # rows of a matrix at which BLAS reaches half its speed, measured
ODD_ROWS = 6  # rows that take as long as those left over where lanes do not divide the rows, measured
CALL_COST = 100  # multiplications that take as long as a call, per pixel of a row, measured
DENSE_COST = 450  # cost of cv2.filter2D (by Fourier transform) in multiplications a pixel, measured


def resize(image: np.ndarray, target: Resize) -> np.ndarray:
    """Resample an image [H, W, C] to the target's size; no anti-aliasing but by ``area``."""
    if image.shape[:2] == (target.height, target.width):
        return image
    resized = cv2.resize(image, (target.width, target.height), interpolation=INTERPOLATION[target.mode])
    return resized.reshape(target.height, target.width, -1)


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate an image [H, W, C] with a kernel, borders reflected (reflect-101), float32."""
    factors = separate(kernel)
    image = image.astype(np.float32, copy=False)
    if len(factors[0]) == 1:
        columns, rows = (factor[0].astype(np.float32) for factor in factors)
        return cv2.sepFilter2D(image, cv2.CV_32F, rows, columns).reshape(image.shape)
    return cv2.filter2D(image, cv2.CV_32F, kernel.astype(np.float32)).reshape(image.shape)


def correlate_resize(image: np.ndarray, kernel: np.ndarray, target: Resize) -> np.ndarray:
    """Return ``resize(correlate(image, kernel), target)`` without computing what the resampling leaves out.

    The result differs from the two steps by at most ``TOLERANCE`` of full scale, beside rounding of float32.

    Args:
        image: [H, W, C], 8-bit or float32.
        kernel: [k, k], odd.
        target: size and interpolation.
    """
    kernel = trim(kernel)
    columns, rows = separate(kernel)
    height, width = image.shape[:2]
    if not _pays(len(columns), (height, width), target, len(kernel)):
        return resize(correlate(image, kernel), target)
    with _blas().limit(limits=1, user_api="blas"):  # a fixed number of threads gives fixed bits
        vertical = _operator(columns, height, target.height, target.mode, "vertical")
        horizontal = _operator(rows, width, target.width, target.mode, "horizontal")
        return _apply_columns(_apply_rows(image, vertical, len(kernel)), horizontal, len(kernel))


def _pays(rank: int, size: tuple[int, int], target: Resize, kernel_size: int) -> bool:
    height, width = size
    if kernel_size // 2 >= min(height, width) or target.height > height or target.width > width:
        return False
    factored = rank * (kernel_size + REACH) * target.height * (width + target.width)
    return factored < DENSE_COST * height * width


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def trim(kernel: np.ndarray, tolerance: float = TOLERANCE / 4) -> np.ndarray:
    """Cut off outer rings of a kernel whose absolute values sum to at most ``tolerance``."""
    radius = len(kernel) // 2
    axis = np.abs(np.arange(-radius, radius + 1))
    rings = np.bincount(np.maximum(axis[:, None], axis).ravel(), np.abs(kernel).ravel())
    beyond = np.cumsum(rings[::-1])[::-1]  # what lies on a ring or outside it
    kept = max(1, int((beyond > tolerance).sum()) - 1)
    return kernel[radius - kept : radius + kept + 1, radius - kept : radius + kept + 1]


def separate(kernel: np.ndarray, tolerance: float = TOLERANCE * 3 / 4) -> tuple[np.ndarray, np.ndarray]:
    """Write a kernel as a sum of outer products by cross approximation with full pivoting.

    Returns:
        columns [rank, k] and rows [rank, k]; neither the positive nor the negative values of the remainder sum to more
        than ``tolerance``, which bounds the error of correlating any image of values from zero to full scale.
    """
    remainder = kernel.astype(np.float64)
    columns: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    while not columns or max(remainder.sum(where=remainder > 0), -remainder.sum(where=remainder < 0)) > tolerance:
        row, column = divmod(int(np.abs(remainder).argmax()), remainder.shape[1])
        pivot = remainder[row, column]
        columns.append(remainder[:, column] / pivot)
        rows.append(remainder[row].copy())
        remainder = remainder - columns[-1][:, None] * rows[-1]
    return np.array(columns), np.array(rows)


@lru_cache(maxsize=64)
def _band(before: int, after: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix of a resampling as bands: first input of each output [after] and its weights [after, taps]."""
    matrix = cv2.resize(np.eye(before, dtype=np.float32), (before, after), interpolation=INTERPOLATION[mode])
    used = matrix != 0
    first = used.argmax(1)
    taps = int((before - used[:, ::-1].argmax(1) - first).max())
    first = np.minimum(first, before - taps)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(taps), 1)


@lru_cache(maxsize=64)
def _scatter(before: int, after: int, mode: str, size: int) -> np.ndarray:
    """Return where the taps of resampling after correlation stand in a flat [after, before + 2 * radius] matrix."""
    first, weights = _band(before, after, mode)
    columns = first[:, None] + np.arange(weights.shape[1] + size - 1)
    return columns + np.arange(after)[:, None] * (before + 2 * (size // 2))


def _operator(factors: np.ndarray, before: int, after: int, mode: str, name: str) -> np.ndarray:
    """Return resampling times correlation along one axis: [rank, after, before], borders reflected.

    Args:
        factors: one-dimensional kernels [rank, k].
        before: inputs along the axis.
        after: outputs along the axis.
        mode: interpolation.
        name: of the memory that it is written to.
    """
    rank, size = factors.shape
    radius = size // 2
    first, weights = _band(before, after, mode)
    taps = weights.shape[1]
    shifted = np.zeros((rank, taps, taps + size - 1), np.float32)
    for tap in range(taps):
        shifted[:, tap, tap : tap + size] = factors
    padded = _memory.array(name, (rank, after, before + 2 * radius), np.dtype(np.float32))
    padded.fill(0)
    padded.reshape(rank, -1)[:, _scatter(before, after, mode, size)] = weights @ shifted
    low = padded[:, : np.searchsorted(first, radius)]  # the outputs that see beyond the first input
    high = padded[:, np.searchsorted(first, before - radius - taps) :]
    low[:, :, radius + 1 : 2 * radius + 1] += low[:, :, :radius][:, :, ::-1]
    high[:, :, before - 1 : before + radius - 1] += high[:, :, before + radius :][:, :, ::-1]
    return padded[:, :, radius : radius + before]


def _blocks(before: int, after: int, size: int, rows: int) -> list[tuple[slice, slice]]:
    """Cut outputs into blocks of some rows, each with the span of inputs that its outputs see."""
    reach = size // 2 + before / after + 2
    return [
        (
            slice(start, min(after, start + rows)),
            slice(
                max(0, int(start * before / after - reach)),
                min(before, int((start + rows) * before / after + reach) + 1),
            ),
        )
        for start in range(0, after, rows)
    ]


@cache
def _block_rows(rank: int, size: int, before: int, after: int) -> int:
    """Return the rows of a block that make the first pass fastest: small ones see less, large ones multiply faster."""
    factor = before / after

    def cost(rows: int) -> float:
        left_over = ODD_ROWS * (rank * rows % LANES > 0)
        return ((rows * factor + size) * (rank * rows + HALF_SPEED + left_over) + CALL_COST) / rows

    return min(BLOCK_ROWS, key=cost)


def _apply_rows(image: np.ndarray, operator: np.ndarray, size: int) -> np.ndarray:
    """Contract the rows of [H, W, C] with [rank, after, H]; return [C, after, rank, W]."""
    rank, after, before = operator.shape
    _, width, channels = image.shape
    pixels = _memory.array("pixels", (before, width * channels), np.dtype(np.float32))
    np.copyto(pixels, image.reshape(before, -1))
    result = _memory.array("rows", (after * rank, width * channels), np.dtype(np.float32))
    rows = operator.transpose(1, 0, 2)
    for outputs, inputs in _blocks(before, after, size, _block_rows(rank, size, before, after)):
        block = rows[outputs, :, inputs].reshape(-1, inputs.stop - inputs.start)
        np.matmul(block, pixels[inputs], out=result[outputs.start * rank : outputs.stop * rank])
    planes = _memory.array("planes", (channels, after * rank, width), np.dtype(np.float32))
    cv2.split(result.reshape(after * rank, width, channels), list(planes))
    return planes.reshape(channels, after, rank, width)


class _Memory(threading.local):
    """Arrays used again by a thread's next call: fresh memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self.flat: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array of any content; it is overwritten by the next one of its name."""
        count = math.prod(shape)
        known = self.flat.get(name)
        if known is None or known.dtype != dtype or known.size < count:
            known = self.flat[name] = np.empty(count, dtype)
        return known[:count].reshape(shape)


_memory = _Memory()


def _apply_columns(partial: np.ndarray, operator: np.ndarray, size: int) -> np.ndarray:
    """Contract the last axis of [C, H, rank, W] with [rank, after, W] and sum the ranks; return [H, after, C]."""
    channels, height, rank, before = partial.shape
    after = operator.shape[1]
    stacked = partial.reshape(channels * height, rank, before)
    result = _memory.array("columns", (channels * height, after), np.dtype(np.float32))
    for outputs, inputs in _blocks(before, after, size, BLOCK_COLUMNS):
        weights = operator[:, outputs, inputs].transpose(0, 2, 1)
        total = stacked[:, 0, inputs] @ weights[0]
        for term in range(1, rank):
            total += stacked[:, term, inputs] @ weights[term]
        result[:, outputs] = total
    return cv2.merge(list(result.reshape(channels, height, after))).reshape(height, after, channels)
