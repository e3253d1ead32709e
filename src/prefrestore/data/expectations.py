"""Running checks with Great Expectations, and their report. Importing this takes seconds: only stages do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import great_expectations as gx
import jinja2
import numpy as np
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig

from prefrestore.data.validation import Check

ROWS_SHOWN = 20
SHOWN_DECIMALS = 6
BINS = 30


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    name: str
    table: str
    expectation: str
    arguments: Mapping[str, Any]
    success: bool
    observed: str
    unexpected: int
    rows: tuple[str, ...]  # ids of offending rows with the value found, the first few


def run_checks(tables: Mapping[str, pd.DataFrame], checks: Sequence[Check]) -> list[Outcome]:
    """Run every check on its table."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("pairs")
    batches = {
        name: source.add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe("whole")
        .get_batch({"dataframe": table})
        for name, table in tables.items()
    }
    return [_run(batches[check.table], tables[check.table], check) for check in checks]


def _run(batch: Any, table: pd.DataFrame, check: Check) -> Outcome:
    expectation = getattr(gx.expectations, check.expectation)(**check.arguments)
    found = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
    if found.exception_info.get("raised_exception"):
        raise RuntimeError(f"{check.name}: {found.exception_info['exception_message']}")
    result = found.result
    places = [int(place) for place in result.get("unexpected_index_list") or []]
    column = check.arguments.get("column")
    return Outcome(
        check.name,
        check.table,
        check.expectation,
        _plain(check.arguments),
        bool(found.success),
        _observed(table, result, column),
        int(result.get("unexpected_count", 0)),
        tuple(_describe(table, place, column) for place in places[:ROWS_SHOWN]),
    )


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments fit to be shown: long sets become their length, bounds lose their slack for rounding."""
    return {name: _short(value) for name, value in arguments.items() if value is not None}


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > ROWS_SHOWN:
        return f"{len(value)} values"
    return round(value, SHOWN_DECIMALS) + 0.0 if isinstance(value, float) else value  # + 0.0: no minus zero


def _observed(table: pd.DataFrame, result: Mapping[str, Any], column: str | None) -> str:
    if "observed_value" in result:
        return str(result["observed_value"])
    if column is not None and pd.api.types.is_numeric_dtype(table[column]) and table[column].notna().any():
        return f"{table[column].min():.4g} to {table[column].max():.4g}"
    return f"{len(table)} rows"


def _describe(table: pd.DataFrame, place: int, column: str | None) -> str:
    row = table.iloc[place]
    return f"{row['id']}" if column in (None, "id") else f"{row['id']} ({column} = {row[column]})"


def results_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return outcomes as plain data."""
    return {"success": all(outcome.success for outcome in outcomes), "outcomes": [asdict(row) for row in outcomes]}


def render(
    outcomes: Sequence[Outcome], tables: Mapping[str, pd.DataFrame], counts: Mapping[str, Any], rejected: pd.DataFrame
) -> str:
    """Return the report as one HTML page that needs nothing else."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("prefrestore.data").joinpath("data_report.html.j2").read_text("utf-8"))
    histograms = {
        name: {column: _histogram(table[column]) for column in sorted(table.select_dtypes("number").columns)}
        for name, table in tables.items()
        if name not in {"source", "drift", "training faces", "evaluation faces"}
    }
    return template.render(
        outcomes=outcomes, histograms=histograms, counts=counts, rejected=rejected.to_dict("records"), shown=200
    )


def _histogram(values: pd.Series) -> dict[str, Any]:
    """Return range, mean and bar heights (0 to 1) of a column."""
    numbers = values.dropna().to_numpy(np.float64)
    heights = np.histogram(numbers, BINS)[0]
    return {
        "low": f"{numbers.min():.4g}",
        "high": f"{numbers.max():.4g}",
        "mean": f"{numbers.mean():.4g}",
        "number": len(numbers),
        "bars": [round(float(height), 3) for height in heights / heights.max()],
    }
