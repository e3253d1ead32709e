"""Has a model become worse than when it was released? Two evaluations on different faces, so nothing is paired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class Shift:
    """How a metric's mean moved, as a gain: negative is worse, whatever the metric's direction.

    ``low`` and ``high`` are the ends of Welch's interval of the gain; ``worse``: all of it is a loss over ``margin``.
    """

    metric: str
    released: float
    now: float
    gain: float
    low: float
    high: float
    margin: float
    worse: bool


def shifts(
    released: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, Any]],
    directions: Mapping[str, str],
    margins: Mapping[str, float],
    confidence: float,
) -> list[Shift]:
    """Compare two evaluations of one model, metric by metric, in the order of ``directions``.

    Args:
        released: estimates (``mean``, ``std``, ``n``) by metric at the release.
        now: the same on other faces.
        directions: ``higher`` or ``lower``, which of them is better.
        margins: losses that do not matter, by metric.
        confidence: of all intervals together (Bonferroni); each by Welch (1947), without equal variances.
    """
    known = [name for name in directions if _usable(released.get(name)) and _usable(now.get(name))]
    level = 1 - (1 - confidence) / max(1, len(known))
    return [
        _shift(name, (released[name], now[name]), directions[name], margins.get(name, 0.0), level) for name in known
    ]


def _usable(estimate: Mapping[str, Any] | None) -> bool:
    """Say whether an estimate is of several faces and has a spread."""
    if estimate is None or estimate["n"] < 2 or estimate["mean"] is None or estimate["std"] is None:
        return False
    return math.isfinite(estimate["mean"]) and math.isfinite(estimate["std"])


def _shift(
    name: str, pair: tuple[Mapping[str, Any], Mapping[str, Any]], direction: str, margin: float, level: float
) -> Shift:
    before, after = pair
    sign = 1.0 if direction == "higher" else -1.0
    gain = sign * (after["mean"] - before["mean"])
    width = _half_width(before, after, level)
    worse = gain + width < -margin
    return Shift(name, before["mean"], after["mean"], gain, gain - width, gain + width, margin, worse)


def _half_width(before: Mapping[str, Any], after: Mapping[str, Any], level: float) -> float:
    variances = [row["std"] ** 2 / row["n"] for row in (before, after)]
    total = sum(variances)
    if total == 0:
        return 0.0
    parts = sum(value**2 / (row["n"] - 1) for value, row in zip(variances, (before, after), strict=True))
    freedom = total**2 / parts
    return float(stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(total))
