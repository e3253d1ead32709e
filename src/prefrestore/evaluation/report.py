"""The report: one HTML file that needs nothing else, for people on a desk, on a phone and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefrestore import __version__, artifacts
from prefrestore.evaluation import pictures
from prefrestore.evaluation.assessment import Assessment
from prefrestore.evaluation.charts import interval_bar, line_chart, reliability_chart
from prefrestore.evaluation.groups import SHOWN as GROUP_METRICS
from prefrestore.evaluation.groups import SMALLEST_INTERVAL
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.page import environment
from prefrestore.evaluation.significance import Comparison, Estimate
from prefrestore.evaluation.summary import statements
from prefrestore.evaluation.table import CANDIDATE, LABELS

REPORT = "report.html"
TABLE_ORDER = ("policy", "champion", "base", "baseline", "bicubic", "lq", "codec")
"""What is judged stands first, where a phone shows it; the ceiling, which is no method, last."""
HEADLINE = ("reward_total", "sample_spread", "identity_similarity", "landmark_distance", "sharpness", "psnr")
CURVES_OPEN = ("reward", "loss", "accuracy")
"""Curves whose title has one of these words are shown at once, the others behind a click."""
UNRANKED = ("sharpness",)
"""No best column is marked: above 1 there is more fine detail than HQ has, which is noise."""
UNMEASURED: Mapping[str, str] = {
    "lpips": "no weights are named (evaluate.lpips_weights)",
    "test_judge": "the reward comes without a test judge",
    "lq_consistency": "nobody recorded how the LQ were made",
}
"""Why a metric has no value in any column, where it is not the faces' fault."""


@dataclass(frozen=True)
class Source:
    """An artifact that the evaluation read."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Origin:
    """Where an evaluation comes from.

    Attributes:
        sources: artifacts and files read.
        counts: faces taken (``train``, ``eval``) and set aside (``rejected``, by ``reasons``).
        digests: of what was read and is no artifact, by name.
    """

    sources: Sequence[Source]
    counts: Mapping[str, Any]
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One figure of the metric table."""

    value: str
    interval: str
    note: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One line of the metric table: a cell per column, None where the metric does not apply.

    ``missing`` says why nothing was measured; empty otherwise.
    """

    name: str
    cells: Sequence[Cell | None]
    missing: str


@dataclass(frozen=True)
class Chart:
    """A training curve and its caption."""

    title: str
    last: str
    svg: Markup

    @property
    def leading(self) -> bool:
        """Whether it is shown at once."""
        return any(word in self.title for word in CURVES_OPEN)


def render(found: Assessment, origin: Origin, faces_shown: int) -> str:
    """Return the report as HTML."""
    templates = environment()
    templates.filters |= {"image": pictures.image_uri, "signed": signed, "plain": plain_number}
    head = headline(found.comparisons)
    return templates.get_template("report.html.j2").render(
        found=found,
        metrics=METRICS,
        labels=LABELS,
        title=statements(head).get("base", "Evaluation"),
        headline=head,
        candidate=CANDIDATE,
        shown=pictures.grid_columns(found),
        grid=pictures.grid_rows(found, faces_shown),
        sliders=pictures.slider_rows(found),
        cases=pictures.cases(found),
        guessed=pictures.guessed_faces(found),
        reliability={name: reliability_chart(fit.predicted, fit.true) for name, (_, fit) in found.uncertainty.items()},
        table_columns=[name for name in TABLE_ORDER if name in found.summary],
        table=metric_rows(found.summary),
        comparisons=grouped_comparisons(found.comparisons),
        people=[group for group in found.groups if group.is_of_people],
        hardness=[group for group in found.groups if not group.is_of_people],
        group_metrics=GROUP_METRICS,
        group_interval=SMALLEST_INTERVAL,
        curves={source.name: charts for source in origin.sources if (charts := charts_of(source.folder))},
        digests={source.name: artifacts.digest(source.folder) for source in origin.sources} | dict(origin.digests),
        recipes=sorted({records[0].recipe for records in found.pairs.records}),
        version=__version__,
        counts=origin.counts,
    )


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus; zero, as rounded, has none."""
    return f"{value:{'+' if round(value, digits) else 'z'}.{digits}f}".replace("-", "\u2212")


def plain_number(value: float, digits: int) -> str:
    """Return a number, a true minus before a negative one; a dash for none."""
    return f"{value:z.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "\u2013"


def metric_rows(summary: Mapping[str, Mapping[str, Estimate]]) -> list[Row]:
    """Return the metric table."""
    columns = [name for name in TABLE_ORDER if name in summary]
    names = [name for name in METRICS if any(name in summary[column] for column in columns)]
    return [Row(name, _metric_row(name, columns, summary), _missing(name, summary)) for name in names]


def _missing(name: str, summary: Mapping[str, Mapping[str, Estimate]]) -> str:
    if any(found[name].n for found in summary.values() if name in found):
        return ""
    return UNMEASURED.get(name, "no face could be analysed")


def _metric_row(name: str, columns: Sequence[str], summary: Mapping[str, Mapping[str, Estimate]]) -> list[Cell | None]:
    means = {
        column: summary[column][name].mean
        for column in columns
        if column != "codec" and name in summary[column] and summary[column][name].n > 0
    }
    choose = max if METRICS[name].direction == "higher" else min
    ranked = len(set(means.values())) > 1 and name not in UNRANKED
    best = choose(means.values()) if ranked else None
    return [
        _cell(summary[column][name], METRICS[name].digits, column in means and means[column] == best)
        if name in summary[column]
        else None
        for column in columns
    ]


def _cell(found: Estimate, digits: int, best: bool) -> Cell:
    note = f"{found.nan} not measured" if found.nan else ""
    ends = (plain_number(end, digits) for end in (found.low, found.high))
    return Cell(plain_number(found.mean, digits), " \u2026 ".join(ends) if math.isfinite(found.low) else "", note, best)


def headline(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the few comparisons with base that open the report."""
    found = {row.metric: row for row in comparisons if row.against == "base"}
    return [found[name] for name in HEADLINE if name in found]


def grouped_comparisons(comparisons: Iterable[Comparison]) -> dict[str, list[tuple[Comparison, Markup]]]:
    """Return the comparisons by the column compared with, each with its picture."""
    groups: dict[str, list[tuple[Comparison, Markup]]] = {}
    for row in comparisons:
        bar = interval_bar(row.gain, row.low, row.high, row.margin, row.outcome) if row.n > 1 else Markup("")
        groups.setdefault(row.against, []).append((row, bar))
    return groups


def charts_of(folder: Path) -> list[Chart]:
    """Return a chart for every series in the ``*history.json`` files of an artifact."""
    return [
        chart
        for path in sorted(folder.glob("*history.json"))
        for chart in _history_charts(path.stem.removesuffix("history").strip("_"), artifacts.read_json(path))
    ]


def _history_charts(prefix: str, rows: Sequence[Mapping[str, float]]) -> Iterable[Chart]:
    names = dict.fromkeys(key for row in rows for key in row if key != "step")
    for name in names:
        series = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if len(series) > 1:
            title = f"{prefix} {name}".strip().replace("_", " ")
            steps, values = zip(*series, strict=True)
            yield Chart(title, f"{values[-1]:.4g}", line_chart(steps, values, title))
