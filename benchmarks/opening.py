"""The picture README opens with: a photograph degraded by us (also written by itself), restored, and where we guessed.

The photograph is scikit-image's portrait of Eileen Collins (NASA, public domain); it is no part of the training data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import plainly
import torch
from skimage import data

from prefrestore.data.degradation import degrade
from prefrestore.data.images import encode_png
from prefrestore.data.photographs import Photograph
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.errors import UserError
from prefrestore.evaluation.restorer import Drawing, load_calibration
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.shipped import SHIPPED, shipped_address
from prefrestore.serving.photograph import SAMPLES, Wishes, restore_photograph

PLACE = (slice(0, 256), slice(96, 352))
"""What is shown of the photograph: rows and columns, pixels."""
PANEL, GAP = 384, 6
"""Side of a panel and what is between two, pixels."""


def panels(model: str, how: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is shown: degraded, restored, and grey with red where it was guessed; [256, 256, 3] uint8 each.

    The recipe is drawn for the shown part, as for a face of that size, and restored in it as in a photograph.
    """
    shown = np.ascontiguousarray(data.astronaut()[PLACE])
    recipe = recipe_named(how.recipe)
    bad = degrade(shown, draw_record(recipe, shown.shape[:2], how.seed, "opening", how.severity))
    located = locate(resolve(model, "sqlite:///mlflow.db"))
    wishes = Wishes(Drawing(SAMPLES, None, 0), how.fidelity, every_face=True)
    restored = restore_photograph(load(located), Photograph(bad), wishes, load_calibration(located.folder))
    if not restored.faces or restored.uncertainty is None:
        raise UserError(f"no face is found in the photograph at severity {how.severity}: take a milder one")
    return bad, restored.photograph.pixels, restored.uncertainty


def beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures, enlarged, in a row, white between them."""
    gap = np.full((PANEL, GAP, 3), 255, np.uint8)
    large = [cv2.resize(picture, (PANEL, PANEL), interpolation=cv2.INTER_CUBIC) for picture in pictures]
    row = [part for picture in large for part in (picture, gap)]
    return np.concatenate(row[:-1], axis=1)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as of `prefrestore restore`; by default the weights that ship")
    parser.add_argument("--recipe", default="pref_restore")
    parser.add_argument("--severity", choices=["mild", "moderate", "severe"], default="mild")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation")
    parser.add_argument("--fidelity", type=float)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/opening.png"))
    options = parser.parse_args()
    if options.model is None and not SHIPPED.is_dir():
        print("no weights ship with this copy, so there is nothing to draw: name a --model")
        return
    torch.set_num_threads(1)
    pictures = panels(options.model or shipped_address(), options)
    picture = beside(pictures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(encode_png(picture))
    options.out.with_name("degraded.png").write_bytes(encode_png(pictures[0]))
    print(f"{options.out}: {picture.shape[1]} x {picture.shape[0]} px")


if __name__ == "__main__":
    plainly.run(main)
