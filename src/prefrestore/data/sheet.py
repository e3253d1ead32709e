"""A contact sheet: what every recipe makes of one image, at three severities."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prefrestore.data.degradation import degrade
from prefrestore.data.operations import Severity
from prefrestore.data.ranges import THIRDS
from prefrestore.data.recipes import Recipe, draw_record, recipes

CELL = 160  # width of a picture, pixels
SAMPLES = 2
LABEL = 170
HEADER = 26
GAP = 3
PAPER = 255


def contact_sheet(hq: np.ndarray, seed: int) -> np.ndarray:
    """Return the sheet: a row per recipe, the image itself, then ``SAMPLES`` degraded ones per severity.

    A recipe that has a severity of its own fills the columns of that one alone.

    Args:
        hq: 8-bit RGB [H, W, 3].
        seed: of the draws.
    """
    height = max(1, round(CELL * hq.shape[0] / hq.shape[1]))
    rows = [_row(hq, recipe, seed, height) for recipe in recipes().values()]
    body = np.concatenate(rows)
    sheet = np.full((HEADER + body.shape[0], LABEL + body.shape[1], 3), PAPER, np.uint8)
    sheet[HEADER:, LABEL:] = body
    return _lettered(sheet, list(recipes()), height)


def _row(hq: np.ndarray, recipe: Recipe, seed: int, height: int) -> np.ndarray:
    images: list[np.ndarray | None] = [hq]
    for severity in THIRDS:
        shown = recipe.severity in {"any", severity}
        images += [_made(hq, recipe, seed, sample, severity) if shown else None for sample in range(SAMPLES)]  # type: ignore[arg-type]
    return np.concatenate([_cell(image, height) for image in images], axis=1)


def _made(hq: np.ndarray, recipe: Recipe, seed: int, sample: int, severity: Severity) -> np.ndarray:
    return degrade(hq, draw_record(recipe, hq.shape[:2], seed, f"sheet-{sample}", severity))


def _cell(image: np.ndarray | None, height: int) -> np.ndarray:
    """Return an image, or nothing, with white to its right and below."""
    cell = np.full((height + GAP, CELL + GAP, 3), PAPER, np.uint8)
    if image is not None:
        cell[:height, :CELL] = cv2.resize(image, (CELL, height), interpolation=cv2.INTER_AREA)
    return cell


def _lettered(sheet: np.ndarray, names: Sequence[str], height: int) -> np.ndarray:
    """Return the sheet with recipes beside the rows and severities above the columns."""
    image = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for place, name in enumerate(names):
        draw.text((6, HEADER + place * (height + GAP) + height // 2), name, "black", font, anchor="lm")
    for place, title in enumerate(("image", *THIRDS)):
        column = 0 if place == 0 else 1 + SAMPLES * (place - 1)
        draw.text((LABEL + column * (CELL + GAP), HEADER // 2), title, "black", font, anchor="lm")
    return np.asarray(image)
