"""The whole evaluation of drawn columns: measured, summed up, compared, broken down; and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from prefrestore import artifacts
from prefrestore.config import EvaluateConfig
from prefrestore.data.pairs import PairSet
from prefrestore.evaluation.calibration import Calibration, Reliability, calibrate
from prefrestore.evaluation.columns import Column
from prefrestore.evaluation.distributions import set_distance
from prefrestore.evaluation.groups import GroupResult, break_down
from prefrestore.evaluation.measure import measure
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.seeds import with_seed_gains
from prefrestore.evaluation.significance import Comparison, Estimate
from prefrestore.evaluation.summary import (
    compare_columns,
    metric_table,
    plain,
    resampling_of,
    statements,
    summarise,
)
from prefrestore.evaluation.table import CANDIDATE, PER_SAMPLE, per_face
from prefrestore.models.lpips import Lpips
from prefrestore.rewards.composite import CompositeReward


@dataclass(frozen=True)
class Assessment:
    """All that an evaluation found.

    Attributes:
        columns: what each method made of the LQ images.
        pairs: the frozen evaluation pairs.
        samples: a row per column, face and sample.
        faces: a row per column and face.
        summary: estimates by column and metric.
        comparisons: the aligned model against each other column.
        statements: the same in a sentence each.
        uncertainty: by generative column, the curve from spread to error and how well it holds.
        groups: the aligned model on parts of the set.
        confidence: of all intervals.
    """

    columns: Sequence[Column]
    pairs: PairSet
    samples: pd.DataFrame
    faces: pd.DataFrame
    summary: Mapping[str, Mapping[str, Estimate]]
    comparisons: Sequence[Comparison]
    statements: Mapping[str, str]
    uncertainty: Mapping[str, tuple[Calibration, Reliability]]
    groups: Sequence[GroupResult]
    confidence: float


def assess(
    columns: Sequence[Column],
    pairs: PairSet,
    reward: CompositeReward,
    config: EvaluateConfig,
    lpips: Lpips | None = None,
) -> Assessment:
    """Measure and compare columns on the frozen pairs."""
    how = resampling_of(config)
    measured = measure(columns, pairs, reward, lpips, config.workers)
    faces = per_face(measured.samples)
    distances = {name: set_distance(found, measured.hq_embeddings) for name, found in measured.embeddings.items()}
    comparisons = with_seed_gains(compare_columns(faces, config), measured.samples)
    calibrated = {column.name: calibrate(column.samples, pairs.hq, how) for column in columns}
    return Assessment(
        columns=columns,
        pairs=pairs,
        samples=measured.samples,
        faces=faces,
        summary=summarise(faces, distances, how),
        comparisons=comparisons,
        statements=statements(comparisons),
        uncertainty={name: found for name, found in calibrated.items() if found is not None},
        groups=break_down(faces, pairs, config.margins, how),
        confidence=config.confidence,
    )


def write_metrics(found: Assessment, folder: Path) -> None:
    """Write the figures: ``metrics.json``, ``per_sample.parquet`` and what explains them."""
    found.samples.to_parquet(folder / PER_SAMPLE, index=False)
    artifacts.write_json(folder / "metrics.json", {"columns": plain(found.summary)})
    comparisons = {"statements": found.statements, "comparisons": plain(found.comparisons)}
    artifacts.write_json(folder / "comparisons.json", comparisons)
    artifacts.write_json(folder / "metric_table.json", metric_table())
    artifacts.write_json(folder / "groups.json", plain(found.groups))
    uncertainty = {
        name: {"calibration": plain(calibration), "reliability": plain(reliability)}
        for name, (calibration, reliability) in found.uncertainty.items()
    }
    artifacts.write_json(folder / "uncertainty.json", uncertainty)
    artifacts.write_json(folder / "gains.json", plain(gain_rows(found.comparisons)))
    artifacts.write_json(folder / "reliability.json", plain(reliability_rows(found)))


def write_reward_curve(policy: Path, folder: Path) -> None:
    """Write the reward of each epoch of alignment as rows that are all alike, which DVC asks of what it plots."""
    rows = artifacts.read_json(policy / "history.json") if (policy / "history.json").is_file() else []
    curve = [{name: row[name] for name in ("step", "reward_total")} for row in rows if "reward_total" in row]
    artifacts.write_json(folder / "policy_reward.json", curve)


def gain_rows(comparisons: Sequence[Comparison]) -> list[dict[str, str | float]]:
    """Return the gains over base as rows to plot, in halves of their intervals: beyond 1 zero lies outside.

    No gain at all is a row too: alignment whose guard kept the base equals it to the bit.
    """
    return [
        {
            "metric": METRICS[row.metric].label,
            "gain_by_half_interval": 2 * row.gain / (row.high - row.low) if row.gain else 0.0,
        }
        for row in comparisons
        if row.against == "base" and (row.high > row.low or row.gain == 0)
    ]


def reliability_rows(found: Assessment) -> list[dict[str, float]]:
    """Return the aligned model's estimated and true error, by bin, as rows to plot."""
    if CANDIDATE not in found.uncertainty:
        return []
    _, reliability = found.uncertainty[CANDIDATE]
    bins = zip(reliability.predicted, reliability.true, strict=True)
    return [{"estimated_error": estimated, "true_error": true} for estimated, true in bins]
