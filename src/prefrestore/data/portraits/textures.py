"""Random fields shared by all portraits, made once per size from a fixed seed; and colours by name."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits.raster import Floats, Raster, linear
from prefrestore.runtime.seeding import rng

_MASTER = 1024

HAIR = {
    "black": linear(30, 26, 26), "dark brown": linear(56, 40, 32), "brown": linear(96, 66, 44),
    "auburn": linear(112, 54, 34), "red": linear(158, 76, 36), "blond": linear(190, 148, 92),
    "light blond": linear(216, 186, 138), "grey": linear(70, 64, 60), "white": linear(204, 202, 200),
}  # fmt: skip
GREY_STRAND = linear(190, 188, 186)
BROW_SHADE = {"black": 0.8, "dark brown": 0.75, "brown": 0.5, "auburn": 0.5, "red": 0.4, "blond": 0.38,
              "light blond": 0.4, "grey": 0.8, "white": 0.8}  # fmt: skip
EYES = {
    "dark brown": linear(58, 36, 24), "brown": linear(98, 62, 36), "hazel": linear(122, 96, 52),
    "green": linear(98, 120, 78), "blue": linear(92, 128, 164), "grey": linear(122, 134, 142),
}  # fmt: skip
TINTS = {
    "blue": linear(52, 84, 150), "grey": linear(128, 130, 134), "green": linear(62, 112, 78),
    "brown": linear(118, 86, 62), "red": linear(160, 48, 50), "teal": linear(44, 118, 126),
    "beige": linear(206, 188, 160), "black": linear(38, 38, 42), "white": linear(228, 228, 226),
    "purple": linear(104, 74, 134),
}  # fmt: skip
METAL = {"black": linear(24, 24, 26), "brown": linear(84, 50, 30), "silver": linear(170, 174, 180),
         "gold": linear(186, 148, 84)}  # fmt: skip
_SKIN_STEPS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
_SKIN = np.stack([linear(*color) for color in (
    (243, 208, 190), (230, 186, 160), (207, 156, 124), (168, 115, 82), (118, 76, 54), (74, 48, 38))])  # fmt: skip


@lru_cache(maxsize=64)
def skin_color(melanin: float, undertone: float) -> Floats:
    """Return the skin's albedo, linear [3]; a positive undertone is rosier, a negative one more golden."""
    base = np.array([np.interp(melanin, _SKIN_STEPS, _SKIN[:, channel]) for channel in range(3)])
    return (base * np.array([1.0, 1.0 - 0.035 * undertone, 1.0 + 0.06 * undertone])).astype(np.float32)


def _tile(master: NDArray[np.float64], size: int) -> Floats:
    """Return a master texture of the whole frame at `size` pixels, repeated to twice the side."""
    small = cv2.resize(master.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.tile(small, (2, 2))


def _white(name: str, sigma_x: float, sigma_y: float) -> NDArray[np.float64]:
    """Return white noise blurred by a Gaussian that wraps around, unit spread."""
    noise = rng("portrait-texture", name).standard_normal((_MASTER, _MASTER))
    rows, columns = np.fft.fftfreq(_MASTER)[:, None], np.fft.rfftfreq(_MASTER)[None]
    window = np.exp(-2.0 * np.pi**2 * ((sigma_y * rows) ** 2 + (sigma_x * columns) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(noise) * window, s=noise.shape)
    return field / field.std()


@lru_cache(maxsize=16)
def _pores(size: int) -> Floats:
    """Return skin grain, [2S, 2S], about unit spread at full detail: pores with a broader mottling."""
    fine = _white("pores", 1.4, 1.4)
    return _tile(-np.maximum(fine - 0.6, 0.0) * 1.6 + 0.45 * _white("grain", 2.4, 2.4), size)


@lru_cache(maxsize=16)
def _mottling(size: int) -> Floats:
    return _tile(0.6 * _white("mottle", 14, 14) + 0.4 * _white("mottle-fine", 6, 6), size)


@lru_cache(maxsize=16)
def _folds(size: int) -> Floats:
    return _tile(_white("folds", 60, 90), size)


_TILES = {"pores": _pores, "mottling": _mottling, "folds": _folds}


def texture(name: str, raster: Raster, random: np.random.Generator) -> Floats:
    """Return a named texture in the window, [h, w], from a random place, the same at every size."""
    size = raster.size
    left, top = (random.random(2) * size).astype(int)
    return raster.of(_TILES[name](size)[top : top + size, left : left + size])
