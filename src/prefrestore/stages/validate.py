"""Stage ``validate``: check the manifest of the pairs with Great Expectations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from prefrestore.artifacts import canonical_json, read_json
from prefrestore.config import ValidateConfig
from prefrestore.data.expectations import Outcome, render, results_of, run_checks
from prefrestore.data.tables import COUNTS, REJECTED
from prefrestore.data.validation import checks_of, drift_checks, drift_table, read_reference, statistics, tables_of
from prefrestore.errors import UserError

NAMED = 5


def run(config: ValidateConfig, *, pairs: Path, data_report: Path) -> None:
    """Write the report, or stop with the name of the first failing expectation and the offending rows."""
    reference = read_reference(config)
    tables = tables_of(pairs)
    checks = checks_of(tables, config)
    numbers = statistics(tables)
    if reference is not None:
        tables["drift"] = drift_table(tables, reference)
        checks += drift_checks(config)
    outcomes = run_checks(tables, checks)
    _stop_at_failure(outcomes)
    page = render(outcomes, tables, read_json(pairs / COUNTS), pd.read_parquet(pairs / REJECTED))
    (data_report / "data_report.html").write_text(page, encoding="utf-8")
    (data_report / "results.json").write_text(canonical_json(results_of(outcomes)), encoding="utf-8")
    (data_report / "reference.json").write_text(canonical_json(numbers), encoding="utf-8")


def _named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _stop_at_failure(outcomes: list[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if not outcome.success]
    if not failed:
        return
    first, *others = failed
    rows = f"; rows: {_named(first.rows)}" if first.rows else ""
    more = f"; also failed: {_named([outcome.name for outcome in others])}" if others else ""
    raise UserError(
        f"validate: expectation failed: {first.name} [{first.table}, {first.expectation}]: found {first.observed}, "
        f"{first.unexpected} offending{rows}{more}: mend the data, or change validate.* if this is meant"
    )
