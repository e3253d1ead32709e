"""From the table of values to ``metrics.json``, paired comparisons and the sentence that sums them up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from prefrestore.config import EvaluateConfig
from prefrestore.evaluation.distributions import SetDistance
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.significance import Comparison, Estimate, Question, Resampling, compare, correct, estimate
from prefrestore.evaluation.table import CANDIDATE, LABELS, values_of

AGAINST = ("base", "baseline", "lq", "champion")


def resampling_of(config: EvaluateConfig) -> Resampling:
    """Return how the evaluation's intervals are made."""
    return Resampling(config.confidence, config.bootstrap, config.seed)


def summarise(
    faces: pd.DataFrame, distances: Mapping[str, SetDistance], how: Resampling
) -> dict[str, dict[str, Estimate]]:
    """Return the estimate of every metric of every column; a metric that a column cannot have is left out.

    Args:
        faces: from :func:`prefrestore.evaluation.table.per_face`.
        distances: of each column's set of faces to HQ's; one value each, so without spread and interval.
        how: how intervals are made.
    """
    columns = list(dict.fromkeys(faces.index.get_level_values("column")))
    return {
        column: {
            **{
                name: estimate(values_of(faces, column, name), how)
                for name in faces.columns
                if METRICS[name].reference != "samples" or faces.loc[column, name].notna().any()
            },
            **_of_set(distances[column]),
        }
        for column in columns
    }


def _of_set(distance: SetDistance) -> dict[str, Estimate]:
    nan = float("nan")
    values = {"frechet_distance": distance.frechet_distance, "kernel_distance": 1e6 * distance.kernel_distance}
    return {name: Estimate(value, nan, distance.n, distance.missing, nan, nan) for name, value in values.items()}


def compare_columns(faces: pd.DataFrame, config: EvaluateConfig) -> list[Comparison]:
    """Compare the aligned model with each other column, every metric, corrected together (Holm) per column."""
    how = resampling_of(config)
    present = set(faces.index.get_level_values("column"))
    found: list[Comparison] = []
    for against in (name for name in AGAINST if name in present):
        rows = [
            compare(
                Question(name, CANDIDATE, against, config.margins.get(name, 0.0)),
                values_of(faces, CANDIDATE, name),
                values_of(faces, against, name),
                how,
            )
            for name in faces.columns
        ]
        found += correct([row for row in rows if row.n > 0], config.confidence)
    return found


def statements(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Say for each column in a sentence how the aligned model stands against it."""
    groups = {against: [row for row in comparisons if row.against == against] for against in AGAINST}
    return {
        against: f"Against {_NOUNS[against]} the aligned model is {_clauses(rows)} ({_most(rows)} faces)."
        for against, rows in groups.items()
        if rows
    }


_NOUNS = {"base": "the base model", "baseline": "the U-Net", "lq": "the LQ itself", "champion": "the champion"}


def _most(rows: Sequence[Comparison]) -> int:
    return max(row.n for row in rows)


def _clauses(rows: Sequence[Comparison]) -> str:
    clauses = []
    for outcome in ("better", "not worse", "worse", "unclear"):
        labels = [METRICS[row.metric].label for row in rows if row.outcome == outcome]
        if labels:
            clauses.append(f"{outcome} in {enumerate_words(labels)}")
    return "; ".join(clauses)


def enumerate_words(words: Sequence[str]) -> str:
    """Join words as English does."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def plain(value: Any) -> Any:
    """Return dataclasses and mappings as JSON values: numbers rounded to 10 digits, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


def metric_table() -> dict[str, Any]:
    """Return the metric table and the columns' names as JSON values."""
    return {"metrics": plain(METRICS), "columns": LABELS}
