"""Restoring aligned faces outside the graph: several samples of one picture, and where they disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prefrestore import artifacts
from prefrestore.data.images import UnreadableError
from prefrestore.data.pairs import to_uint8
from prefrestore.evaluation.calibration import Calibration, uncertainty_maps
from prefrestore.evaluation.pictures import overlay
from prefrestore.evaluation.table import CANDIDATE
from prefrestore.models.pipeline import PrefRestorePipeline, to_tensor_of
from prefrestore.runtime.seeding import derive

FULL_RED = 0.15
"""Estimated error, of values in [0, 1], that is painted at full strength: one scale for all pictures."""
UNCERTAINTY = Path("metrics", "uncertainty.json")


@dataclass(frozen=True)
class Drawing:
    """How a face is drawn; the same seed gives the same samples, whatever else is restored."""

    samples: int
    steps: int | None
    seed: int
    text: str = ""


def load_calibration(model: Path) -> Calibration | None:
    """Return the curve from spread to error that the release's own evaluation fitted; None if it has none."""
    if not (model / UNCERTAINTY).is_file():
        return None
    stored = artifacts.read_json(model / UNCERTAINTY).get(CANDIDATE)
    return Calibration(**{name: tuple(values) for name, values in stored["calibration"].items()}) if stored else None


@torch.no_grad()
def draw_samples(pipeline: PrefRestorePipeline, image: np.ndarray, how: Drawing) -> np.ndarray:
    """Return restorations [S, size, size, 3] uint8 of one aligned face [H, W, 3] uint8.

    Raises:
        UnreadableError: the picture is not square, so it is no aligned face.
    """
    height, width = image.shape[:2]
    if height != width:
        raise UnreadableError(f"not square ({width} x {height} px), so no aligned face")
    lq = to_tensor_of(Image.fromarray(image), pipeline.image_size)
    condition = pipeline.prepare(pipeline.encode_condition(lq, [how.text]))
    steps, guidance = pipeline.sampling(how.text, how.steps)
    drawn = []
    for number in range(how.samples):
        noise = pipeline.initial_noise([derive("restore", how.seed, number)])
        drawn.append(pipeline.decode(pipeline.sample(condition, noise, steps, guidance)))
    return to_uint8(torch.cat(drawn))


def uncertainty_picture(samples: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """Return the first of the samples [S, H, W, 3] in grey, red where the model guessed.

    Red is the estimated error; without a calibration it is the spread of the samples itself.
    """
    spread = uncertainty_maps(samples[:, None])
    estimated = spread if calibration is None else calibration(spread)
    return overlay(samples[0], estimated[0] / FULL_RED)
