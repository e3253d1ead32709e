"""Parts of the evaluation set: by how hard the LQ is, and by what the HQ picture and its caption show.

Skin tone and, where captions say so, glasses and beard are looked at, to see whether someone is served worse; no other
trait is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from skimage.color import rgb2lab

from prefrestore.data.operations import DegradationRecord, Resize
from prefrestore.data.pairs import PairSet
from prefrestore.evaluation.metrics import gain_sign
from prefrestore.evaluation.significance import Comparison, Estimate, Question, Resampling, compare, estimate
from prefrestore.evaluation.table import CANDIDATE, values_of
from prefrestore.faces.geometry import interocular, is_known

SHOWN = ("psnr", "ms_ssim", "identity_similarity", "landmark_distance")
SMALLEST_GROUP = 2
SMALLEST_INTERVAL = 5
"""Faces below which the report shows a group's mean but no interval: so few cannot be resampled."""

ITA_BANDS: Mapping[str, tuple[float, float]] = {
    "light (ITA over 41)": (41.0, np.inf),
    "intermediate (ITA 10 to 41)": (10.0, 41.0),
    "dark (ITA under 10)": (-np.inf, 10.0),
}
"""Chardon et al. 1991 have six bands at 55, 41, 28, 10 and -30 degrees; two at a time are joined."""

TRAITS: Mapping[str, str] = {
    "glasses": r"\b(sun)?glasses\b|\bspectacles\b",
    "beard": r"\b(beard|moustache|mustache|goatee)\b",
}
PEOPLE = ("skin tone", *TRAITS)
"""Kinds of groups that say who is served; the others say how hard the LQ is."""
_NEGATED = re.compile(r"\b(no|without)\b(\s+\w+)?\s*$")


@dataclass(frozen=True)
class GroupResult:
    """One group: how the aligned model does there, its gain over base, and how far the group stands from the others.

    ``apart`` has signed as gains: above zero the group is served better than the other faces of its kind.
    """

    kind: str
    name: str
    n: int
    estimates: Mapping[str, Estimate]
    gains: Mapping[str, Comparison]
    apart: Mapping[str, Difference]

    @property
    def is_of_people(self) -> bool:
        """Whether the group is by what the person looks like, not by how the LQ was made."""
        return self.kind in PEOPLE


@dataclass(frozen=True)
class Difference:
    """A difference of two independent means with its interval; NaN where a side has fewer than two faces."""

    mean: float
    low: float
    high: float


def groups_of(pairs: PairSet) -> dict[str, dict[str, np.ndarray]]:
    """Return the groups by kind and name, each a mask over the faces [N]; kinds with one group are left out."""
    first = [records[0] for records in pairs.records]
    kinds = {
        "recipe": _by_label([record.recipe for record in first]),
        "severity": _by_label([record.severity for record in first]),
        "smallest size of the LQ": _by_size(np.array([smallest_side(record) for record in first])),
        "skin tone": _by_tone(np.array([skin_tone(a, b) for a, b in zip(pairs.hq, pairs.landmarks, strict=True)])),
        **{name: _by_trait(pairs.captions, pattern) for name, pattern in TRAITS.items()},
    }
    return {kind: found for kind, found in kinds.items() if len(found) > 1}


def smallest_side(record: DegradationRecord) -> int:
    """Return the least side, pixels, that an image had on its way."""
    return min([record.size, *(min(step.width, step.height) for step in record.operations if isinstance(step, Resize))])


def skin_tone(hq: np.ndarray, landmarks: np.ndarray) -> float:
    """Return the individual typology angle, degrees, of the cheeks: ``atan((L - 50) / b)`` (Chardon et al. 1991).

    It is measured from the picture, so light and white balance are in it. NaN where the geometry is unknown.
    """
    if not is_known(landmarks):
        return float("nan")
    points = landmarks.astype(np.float64)
    centres = [(points[jaw] + points[nose]) / 2 for jaw, nose in ((2, 31), (14, 35))]
    radius = max(1.5, 0.12 * interocular(points))
    rows, columns = np.mgrid[: hq.shape[0], : hq.shape[1]]
    inside = np.logical_or.reduce([np.hypot(columns - x, rows - y) <= radius for x, y in centres])
    if not inside.any():
        return float("nan")
    lightness, _, yellow = np.median(rgb2lab(hq[inside][None] / 255.0)[0], axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def has_trait(caption: str, pattern: str) -> bool:
    """Say whether a caption names a trait, and not its absence."""
    return any(not _NEGATED.search(caption[: found.start()]) for found in re.finditer(pattern, caption.lower()))


def _by_label(labels: Sequence[str]) -> dict[str, np.ndarray]:
    return {label: np.array([each == label for each in labels]) for label in sorted(set(labels))}


def _by_size(sides: np.ndarray) -> dict[str, np.ndarray]:
    """Cut the faces into three parts of about equal number."""
    low, high = np.quantile(sides, [1 / 3, 2 / 3])
    masks = (sides <= low, (sides > low) & (sides <= high), sides > high)
    return {f"{sides[mask].min()} to {sides[mask].max()} px": mask for mask in masks if mask.any()}


def _by_tone(angles: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):
        masks = {name: (angles >= low) & (angles < high) for name, (low, high) in ITA_BANDS.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _by_trait(captions: Sequence[str], pattern: str) -> dict[str, np.ndarray]:
    """Split the faces that have a caption by what it says; nothing without captions."""
    said = np.array([bool(caption) for caption in captions])
    with_it = np.array([has_trait(caption, pattern) for caption in captions])
    masks = {"with": said & with_it, "without": said & ~with_it}
    return {name: mask for name, mask in masks.items() if mask.any()}


def break_down(faces: pd.DataFrame, pairs: PairSet, margins: Mapping[str, float], how: Resampling) -> list[GroupResult]:
    """Return the aligned model's figures and its gain over base in every group of at least two faces."""
    return [
        _measure_group(faces, (mask, np.logical_or.reduce(list(found.values())) & ~mask), (kind, name), margins, how)
        for kind, found in groups_of(pairs).items()
        for name, mask in found.items()
        if mask.sum() >= SMALLEST_GROUP
    ]


def _measure_group(
    faces: pd.DataFrame,
    masks: tuple[np.ndarray, np.ndarray],
    key: tuple[str, str],
    margins: Mapping[str, float],
    how: Resampling,
) -> GroupResult:
    inside, others = masks
    values = {name: (values_of(faces, CANDIDATE, name), values_of(faces, "base", name)) for name in faces.columns}
    gains = {
        name: compare(Question(name, CANDIDATE, "base", margins.get(name, 0.0)), mine[inside], base[inside], how)
        for name, (mine, base) in values.items()
    }
    return GroupResult(
        *key,
        int(inside.sum()),
        {name: estimate(mine[inside], how) for name, (mine, _) in values.items()},
        gains,
        {
            name: difference(gain_sign(name) * mine[inside], gain_sign(name) * mine[others], how.confidence)
            for name, (mine, _) in values.items()
        },
    )


def difference(first: np.ndarray, second: np.ndarray, confidence: float) -> Difference:
    """Return the mean of ``first`` less that of ``second``, with Welch's interval; unknown values are left out."""
    sides = [side[np.isfinite(side)] for side in (first, second)]
    if min(map(len, sides)) < 2:
        return Difference(*(3 * (float("nan"),)))
    gap = float(sides[0].mean() - sides[1].mean())
    shares = np.array([side.var(ddof=1) / len(side) for side in sides])
    if shares.sum() == 0:
        return Difference(gap, gap, gap)
    freedom = shares.sum() ** 2 / sum(share**2 / (len(side) - 1) for share, side in zip(shares, sides, strict=True))
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(shares.sum()))
    return Difference(gap, gap - reach, gap + reach)
