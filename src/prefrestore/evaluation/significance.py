"""Intervals over faces and paired comparisons of two columns.

The bootstrap resamples faces, the unit that was drawn; samples of one face are averaged before. Percentiles are
expanded as Hesterberg (2015, "What Teachers Should Know About the Bootstrap", section 5.4) gives, because the plain
percentile interval of a mean is too short by the factor sqrt((n - 1) / n) z / t on few faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import stats

from prefrestore.evaluation.metrics import gain_sign
from prefrestore.runtime.seeding import rng

Outcome = Literal["better", "not worse", "worse", "unclear"]


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A mean over faces with its interval; NaN where there are too few faces."""

    mean: float
    std: float
    n: int
    nan: int
    low: float
    high: float


@dataclass(frozen=True)
class Question:
    """Which column is compared with which, by what, and how large a loss does not matter."""

    metric: str
    candidate: str
    against: str
    margin: float


@dataclass(frozen=True)
class Comparison:
    """Paired differences of one metric, as gains: positive is better, whatever the metric's direction.

    The means are over the ``n`` faces that both columns have a value for; ``nan`` faces lack one. ``seed_gains`` are
    the mean gains of each sampling seed alone; empty where that says nothing.
    """

    metric: str
    candidate: str
    against: str
    candidate_mean: float
    against_mean: float
    n: int
    nan: int
    gain: float
    low: float
    high: float
    margin: float
    p_better: float
    p_worse: float
    outcome: Outcome
    seed_gains: tuple[float, ...] = ()


def bootstrap_means(values: np.ndarray, how: Resampling) -> np.ndarray:
    """Return the means of ``how.resamples`` resamples of ``values`` [n]."""
    return values[_chosen(len(values), how.resamples, how.seed)].mean(1)


@lru_cache(maxsize=8)
def _chosen(n: int, resamples: int, seed: int) -> np.ndarray:
    """Return the rows [resamples, n] of all resamples, the same for every metric of n faces."""
    return rng("bootstrap", seed, n).integers(n, size=(resamples, n))


def _expansion(n: int) -> float:
    return math.sqrt(n / (n - 1))


def mean_interval(values: np.ndarray, how: Resampling) -> tuple[float, float]:
    """Return the two-sided expanded percentile interval of the mean of ``values`` [n]; NaN for n < 2."""
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    tail = stats.norm.cdf(_expansion(n) * stats.t.ppf((1 - how.confidence) / 2, n - 1))
    low, high = np.quantile(bootstrap_means(values, how), [tail, 1 - tail])
    return float(low), float(high)


def estimate(values: np.ndarray, how: Resampling) -> Estimate:
    """Summarise one metric of one column; values that are not finite are counted, not used."""
    kept = values[np.isfinite(values)]
    n, missing = len(kept), len(values) - len(kept)
    low, high = mean_interval(kept, how)
    mean = float(kept.mean()) if n else float("nan")
    return Estimate(mean, float(kept.std(ddof=1)) if n > 1 else float("nan"), n, missing, low, high)


def p_not_above(values: np.ndarray, bound: float) -> float:
    """Return the one-sided p-value of "the mean of ``values`` is at most ``bound``" (Student's t).

    A bootstrap's p-value is no smaller than its number of resamples resolves, which a correction for many metrics would
    turn into "never significant".
    """
    if len(values) < 2:
        return 1.0
    if np.ptp(values) == 0:
        return 0.0 if values[0] > bound else 1.0
    return float(stats.ttest_1samp(values, bound, alternative="greater").pvalue)


def classify(low: float, high: float, margin: float) -> Outcome:
    """Say what an interval of gains settles: ``worse`` and ``not worse`` may both hold, then the margin decides."""
    if low > 0:
        return "better"
    if low >= -margin:
        return "not worse"
    return "worse" if high < 0 else "unclear"


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjusted p-values (Holm 1979): the family-wise error stays below the level."""
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values, dtype=np.float64)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def compare(question: Question, candidate: np.ndarray, against: np.ndarray, how: Resampling) -> Comparison:
    """Compare two columns face by face, values [n] in the same order of faces."""
    kept = np.isfinite(candidate) & np.isfinite(against)
    a, b = candidate[kept], against[kept]
    gains = gain_sign(question.metric) * (a - b)
    summary = estimate(gains, how)
    n, missing = len(gains), int((~kept).sum())
    return Comparison(
        metric=question.metric,
        candidate=question.candidate,
        against=question.against,
        candidate_mean=float(a.mean()) if n else float("nan"),
        against_mean=float(b.mean()) if n else float("nan"),
        n=n,
        nan=missing,
        gain=summary.mean,
        low=summary.low,
        high=summary.high,
        margin=question.margin,
        p_better=p_not_above(gains, 0.0),
        p_worse=p_not_above(-gains, 0.0),
        outcome=classify(summary.low, summary.high, question.margin),
    )


def correct(comparisons: Sequence[Comparison], confidence: float) -> list[Comparison]:
    """Adjust the p-values of a family by Holm and take back each "better" or "worse" that does not survive it.

    "Not worse" is a statement about a margin and stays as its own interval gives it.
    """
    level = (1 - confidence) / 2
    better = holm(np.array([row.p_better for row in comparisons]))
    worse = holm(np.array([row.p_worse for row in comparisons]))
    return [
        replace(row, p_better=float(up), p_worse=float(down), outcome=_keep(row, up < level, down < level))
        for row, up, down in zip(comparisons, better, worse, strict=True)
    ]


def _keep(row: Comparison, is_better: bool, is_worse: bool) -> Outcome:
    if row.outcome == "better" and not is_better:
        return "not worse"
    if row.outcome == "worse" and not is_worse:
        return "unclear"
    return row.outcome
