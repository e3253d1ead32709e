"""Other views of one portrait to train on: the same face cut a little otherwise, in other light."""

from __future__ import annotations

import numpy as np

MOST_TURNED = np.deg2rad(5)
MOST_MOVED = 0.02  # of the side
SCALES = (0.92, 1.04)
MOST_GAMMA = 0.2  # natural logarithm
MOST_BALANCE = 0.06  # of the gamma of one channel beside the others, natural logarithm


def shaken(square: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a crop's corners [4, 2] turned by up to 5 degrees, scaled by 0.92 to 1.04, moved by 2 % of the side."""
    angle = random.uniform(-MOST_TURNED, MOST_TURNED)
    scale = random.uniform(*SCALES)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = square.mean(0)
    moved = random.uniform(-MOST_MOVED, MOST_MOVED, 2) * np.linalg.norm(square[1] - square[0])
    return centre + moved + (square - centre) @ turn


def retoned(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return an 8-bit RGB image with another gamma and balance of colours; black and white stay where they are."""
    gamma = np.exp(random.uniform(-MOST_GAMMA, MOST_GAMMA))
    exponents = gamma * np.exp(random.uniform(-MOST_BALANCE, MOST_BALANCE, 3))
    levels = np.linspace(0, 1, 256)[:, None] ** exponents
    table = np.rint(255 * levels).astype(np.uint8)
    return np.stack([table[image[..., channel], channel] for channel in range(3)], axis=-1)
