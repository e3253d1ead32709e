"""Blur kernels: small float arrays that sum to one.

Sources: BasicSR's published degradation model (Gaussian family, plateau, circular low-pass), as used by GFPGAN,
CodeFormer, Real-ESRGAN and Pref-Restore; Liu et al. 2020 for generalized Gaussian and plateau shapes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import j1

from prefrestore.data.operations import Blur, Kernel, Motion, Sinc

MOTION_SUPERSAMPLING = 16


def kernel_of(operation: Kernel) -> np.ndarray:
    """Return the kernel of a blur operation, float64 [size, size], sum one."""
    match operation:
        case Blur():
            weights = _gaussian_family(operation)
        case Sinc():
            weights = _circular_lowpass(operation.size, operation.cutoff)
        case Motion():
            weights = _motion(operation)
    return weights / weights.sum()


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y coordinates relative to the centre, each [size, size]."""
    axis = np.arange(size, dtype=np.float64) - size // 2
    return axis[None, :], axis[:, None]


def _gaussian_family(blur: Blur) -> np.ndarray:
    """Return weights of d = x' inv(Sigma) x: Gaussian exp(-d/2), generalized exp(-d^beta/2), plateau 1/(1 + d^beta)."""
    x, y = _grid(blur.size)
    cos, sin = math.cos(blur.rotation), math.sin(blur.rotation)
    along, across = x * cos + y * sin, y * cos - x * sin
    distance = (along / blur.sigma_x) ** 2 + (across / blur.sigma_y) ** 2
    if blur.kernel.startswith("plateau"):
        return 1 / (1 + distance**blur.beta)
    return np.exp(-0.5 * distance**blur.beta)


def _circular_lowpass(size: int, cutoff: float) -> np.ndarray:
    """Return the ideal low-pass kernel cutoff * J1(cutoff r) / (2 pi r), and its limit cutoff^2 / (4 pi) at r = 0."""
    radius = np.hypot(*_grid(size))
    safe = np.where(radius == 0, 1, radius)
    return np.where(radius == 0, cutoff**2 / (4 * math.pi), cutoff * j1(cutoff * safe) / (2 * math.pi * safe))


def _motion(motion: Motion) -> np.ndarray:
    """Return a line through the centre, each of its points shared bilinearly between the four nearest pixels."""
    count = max(2, math.ceil(motion.length * MOTION_SUPERSAMPLING))
    steps = np.linspace(-0.5, 0.5, count) * motion.length
    weights = np.zeros((motion.size, motion.size))
    centre = motion.size // 2
    xs, ys = centre + steps * math.cos(motion.rotation), centre + steps * math.sin(motion.rotation)
    left, top = np.floor(xs).astype(int), np.floor(ys).astype(int)
    for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - np.abs(xs - left - dx)) * (1 - np.abs(ys - top - dy))
        rows, columns = np.clip(top + dy, 0, motion.size - 1), np.clip(left + dx, 0, motion.size - 1)
        np.add.at(weights, (rows, columns), share)
    return weights
