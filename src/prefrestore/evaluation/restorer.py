"""Restoring aligned faces outside the graph: a picture's restoration, and where samples of it disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
COMPARED_STEPS = 4
"""At least so many for samples that are compared: those of one step hardly differ, however little is known."""
UNCERTAINTY = Path("metrics", "uncertainty.json")


@dataclass(frozen=True)
class Drawing:
    """How a face is drawn; the same seed gives the same pictures, whatever else is restored.

    Attributes:
        samples: how many are compared; 0 is none.
        steps: of restoration and samples; None: the model's own, and for samples no less than COMPARED_STEPS.
        seed: another one draws others.
        text: what is known of the person.
    """

    samples: int
    steps: int | None
    seed: int
    text: str = ""


@dataclass(frozen=True)
class Drawn:
    """A face as it was drawn: the restoration [size, size, 3] and the samples that are compared [S, size, size, 3]."""

    restoration: np.ndarray
    samples: np.ndarray


def load_calibration(model: Path) -> Calibration | None:
    """Return the curve from spread to error that the release's own evaluation fitted; None if it has none."""
    if not (model / UNCERTAINTY).is_file():
        return None
    stored = artifacts.read_json(model / UNCERTAINTY).get(CANDIDATE)
    return Calibration(**{name: tuple(values) for name, values in stored["calibration"].items()}) if stored else None


@torch.no_grad()
def draw(pipeline: PrefRestorePipeline, image: np.ndarray, how: Drawing) -> Drawn:
    """Restore one aligned face [H, W, 3] uint8.

    Raises:
        UnreadableError: the picture is not square, so it is no aligned face.
    """
    height, width = image.shape[:2]
    if height != width:
        raise UnreadableError(f"not square ({width} x {height} px), so no aligned face")
    lq = to_tensor_of(Image.fromarray(image), pipeline.image_size)
    condition = pipeline.prepare(pipeline.encode_condition(lq, [how.text]))
    steps, guidance = pipeline.sampling(how.text, how.steps)

    def sample(number: int, steps: int) -> Tensor:
        noise = pipeline.initial_noise([derive("restore", how.seed, number)])
        return pipeline.decode(pipeline.sample(condition, noise, steps, guidance))

    compared = how.steps or max(steps, COMPARED_STEPS)
    restoration = sample(0, steps)
    reused = [restoration] if compared == steps else []
    drawn = (reused + [sample(number, compared) for number in range(len(reused), how.samples)])[: how.samples]
    samples = to_uint8(torch.cat(drawn)) if drawn else np.empty((0, *restoration.shape[2:], 3), np.uint8)
    return Drawn(to_uint8(restoration)[0], samples)


def uncertainty_picture(shown: np.ndarray, samples: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """Return a restoration [H, W, 3] in grey, red where the model guessed, by samples [S, H, W, 3] of it.

    Red is the estimated error; without a calibration it is the spread of the samples itself.
    """
    spread = uncertainty_maps(samples[:, None])
    estimated = spread if calibration is None else calibration(spread)
    return overlay(shown, estimated[0] / FULL_RED)
