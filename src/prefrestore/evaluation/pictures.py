"""The report's pictures: grids, telling cases, and where the model guessed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from prefrestore.evaluation.assessment import Assessment
from prefrestore.evaluation.calibration import error_maps, uncertainty_maps
from prefrestore.evaluation.columns import Column
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.table import CANDIDATE, LABELS, values_of

GRID_COLUMNS = ("lq", "baseline", "base", "policy", "champion")
CASE_METRICS = ("identity_similarity", "landmark_distance", "lpips", "ms_ssim", "psnr", "lq_consistency", "niqe")
LARGEST_PNG = 128
NUM_SLIDERS = 4
NUM_MAPS = 4
OVERLAY_COLOUR, OPACITY = (255, 45, 0), 0.85


@dataclass(frozen=True)
class Picture:
    """An image and what it shows."""

    image: np.ndarray  # [H, W, 3] uint8
    text: str


@dataclass(frozen=True)
class Case:
    """One face that stands for good, middling or bad results by a metric."""

    rank: str
    face_id: str
    value: float
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class GuessedFace:
    """A restoration, its estimated and its true error on one scale."""

    face_id: str
    pictures: Sequence[Picture]


def image_uri(image: np.ndarray) -> str:
    """Return an RGB image [H, W, 3] uint8 as a data URI: PNG up to 128 px, above it WebP of quality 92."""
    kind, options = ("png", []) if max(image.shape[:2]) <= LARGEST_PNG else ("webp", [cv2.IMWRITE_WEBP_QUALITY, 92])
    done, data = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"an image of {image.shape} cannot be written as {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def grid_columns(found: Assessment) -> list[Column]:
    """Return the columns that the grid shows, HQ aside."""
    by_name = {column.name: column for column in found.columns}
    return [by_name[name] for name in GRID_COLUMNS if name in by_name]


def grid_rows(found: Assessment, count: int) -> list[list[Picture]]:
    """Return the first ``count`` faces by id, not chosen by quality: each method's first sample, then HQ."""
    columns = grid_columns(found)
    return [
        [
            *(Picture(column.samples[0, row], f"{face_id}: {LABELS[column.name]}") for column in columns),
            Picture(found.pairs.hq[row], f"{face_id}: HQ"),
        ]
        for row, face_id in enumerate(found.pairs.ids[:count])
    ]


def slider_rows(found: Assessment) -> list[tuple[Picture, Picture]]:
    """Return the first faces as LQ and aligned pictures."""
    restored = candidate_of(found).samples[0]
    return [
        (Picture(found.pairs.lq[row, 0], f"{face_id}: LQ"), Picture(restored[row], f"{face_id}: aligned"))
        for row, face_id in enumerate(found.pairs.ids[:NUM_SLIDERS])
    ]


def candidate_of(found: Assessment) -> Column:
    """Return the aligned model's column."""
    return next(column for column in found.columns if column.name == CANDIDATE)


def cases(found: Assessment) -> dict[str, list[Case]]:
    """Return the aligned model's best, median and worst face by each metric that looks at one face."""
    picked = {name: _cases_of(found, name) for name in CASE_METRICS}
    return {name: rows for name, rows in picked.items() if rows}


def _cases_of(found: Assessment, metric: str) -> list[Case]:
    values = values_of(found.faces, CANDIDATE, metric)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN sort last
    if len(order) == 0:
        return []
    if METRICS[metric].direction == "higher":
        order = order[::-1]
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [_case(found, rank, int(row), float(values[row])) for rank, row in chosen.items()]


def _case(found: Assessment, rank: str, row: int, value: float) -> Case:
    face_id = found.pairs.ids[row]
    pictures = [
        Picture(found.pairs.lq[row, 0], f"{face_id}: LQ"),
        Picture(candidate_of(found).samples[0, row], f"{face_id}: aligned"),
        Picture(found.pairs.hq[row], f"{face_id}: HQ"),
    ]
    return Case(rank, face_id, value, pictures)


def guessed_faces(found: Assessment) -> list[GuessedFace]:
    """Return aligned faces that the calibration was not fitted on, with estimated and true error, or nothing."""
    if CANDIDATE not in found.uncertainty:
        return []
    calibration, _ = found.uncertainty[CANDIDATE]
    samples = candidate_of(found).samples
    rows = list(range(1, len(found.pairs.ids), 2))[:NUM_MAPS]
    estimated = calibration(uncertainty_maps(samples[:, rows]))
    true = error_maps(samples[:, rows], found.pairs.hq[rows])
    top = float(np.quantile(true, 0.995)) or 1.0
    return [
        GuessedFace(
            found.pairs.ids[row],
            [
                Picture(samples[0, row], "aligned"),
                Picture(overlay(samples[0, row], estimated[place] / top), "where it guessed"),
                Picture(heat(estimated[place] / top), "estimated error"),
                Picture(heat(true[place] / top), "true error"),
            ],
        )
        for place, row in enumerate(rows)
    ]


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay values [H, W] in [0, 1] as red over a picture [H, W, 3] uint8 that is made grey; return such a picture.

    Opacity grows with their square, so that what stands out is what is seen.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)[..., None]
    weight = OPACITY * np.clip(values, 0, 1)[..., None] ** 2
    return np.rint((1 - weight) * grey + weight * np.array(OVERLAY_COLOUR)).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """Return values [H, W] in [0, 1] as colours, dark to bright, [H, W, 3] uint8."""
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
