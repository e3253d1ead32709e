"""Stage gate: metrics -> verdict. A failed gate is a result, not an error."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prefrestore import artifacts
from prefrestore.config import GateConfig
from prefrestore.errors import UserError
from prefrestore.evaluation.gate import Finding, Verdict, describe, judge
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.summary import plain
from prefrestore.evaluation.table import CANDIDATE, PER_SAMPLE, per_face


def run(config: GateConfig, *, metrics: Path, verdict: Path) -> None:
    """Compare the policy with the others by the declared rules and write ``verdict.json``."""
    table = metrics / PER_SAMPLE
    if not table.is_file():
        raise UserError(f"gate: {table} is missing: run evaluate again")
    result = judge(per_face(pd.read_parquet(table)), config)
    artifacts.write_json(verdict / "verdict.json", as_json(result, config))


def as_json(verdict: Verdict, config: GateConfig) -> dict[str, object]:
    """Return the verdict as JSON values."""
    return {
        "passed": verdict.passed,
        "sentence": verdict.sentence,
        "candidate": CANDIDATE,
        "confidence": config.confidence,
        "comparisons": [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        **finding.rule.model_dump(mode="json"),
        "rule": describe(finding.rule),
        "direction": METRICS[finding.rule.metric].direction,
        "outcome": finding.outcome,
        "why": finding.why,
        "measured": plain(finding.measured),
    }
