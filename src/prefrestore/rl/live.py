"""A run seen while it goes on: curves and fixed faces beside the checkpoints, metrics in MLflow; no output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from prefrestore.data.pairs import to_uint8
from prefrestore.rl.types import FacePool
from prefrestore.runtime.tracking import Tracker

CURVES, STRIP = "curves.png", "faces.png"
FACES_SHOWN = 6
PANELS = {
    "reward": ("reward_total", "held_out_reward_total"),
    "spread": ("spread", "held_out_spread"),
    "held-out fidelity": ("held_out_identity", "held_out_structure"),
    "held-out sharpness": ("held_out_sharpness",),
    "mean squared deviation of velocity": ("policy_ref_deviation", "old_ref_deviation", "policy_old_deviation"),
    "loss": ("loss_policy",),
}


class LiveView:
    """Draws into ``folder/live``: ``curves.png``, and ``faces.png`` (LQ, one column per look, HQ); tells a tracker."""

    def __init__(self, folder: Path, faces: FacePool, tracker: Tracker | None = None) -> None:
        self._tracker = tracker
        self.folder = folder / "live"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._faces = faces

    def tell(self, history: Sequence[Mapping[str, float]]) -> None:
        """Tell the tracker, if there is one, of the epochs that it does not know."""
        if self._tracker:
            self._tracker.tell(history)

    def end(self, history: Sequence[Mapping[str, float]], outcome: Mapping[str, object]) -> None:
        """Tell the tracker what came of the run."""
        if self._tracker:
            self._tracker.end(history, outcome)

    def show(self, history: Sequence[Mapping[str, float]], images: Tensor, epoch: int) -> None:
        """Draw the curve so far, and a new column of the strip.

        Args:
            history: the rows of all epochs so far.
            images: one restoration [N, 3, H, W] in [0, 1] of each held-out face.
            epoch: after how many epochs they were drawn; 0 is the base.
        """
        _column(to_uint8(images[:FACES_SHOWN])).save(self.folder / f"look-{epoch:06d}.png")
        looks = [np.asarray(Image.open(path)) for path in sorted(self.folder.glob("look-*.png"))]
        ends = (np.asarray(_column(side[:FACES_SHOWN])) for side in (self._faces.lq, self._faces.hq))
        lq, hq = ends
        Image.fromarray(np.concatenate([lq, *looks, hq], axis=1)).save(self.folder / STRIP)
        if history:
            draw_curves(history, self.folder / CURVES)


def _column(images: np.ndarray) -> Image.Image:
    return Image.fromarray(images.reshape(-1, *images.shape[2:]))


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the named terms of a training history, one panel for each kind, as a PNG."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=90)
