"""Stage gate: metrics -> verdict. A failed gate is a result, not an error."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import GateConfig
from prefrestore.evaluation.gate import Finding, Verdict, describe, judge_metrics
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.summary import plain
from prefrestore.evaluation.table import CANDIDATE


def run(config: GateConfig, *, metrics: Path, verdict: Path) -> None:
    """Compare the policy with the others by the declared rules and write ``verdict.json``."""
    artifacts.write_json(verdict / "verdict.json", as_json(judge_metrics(metrics, config), config))


def as_json(verdict: Verdict, config: GateConfig) -> dict[str, object]:
    """Return the verdict as JSON values."""
    return {
        "passed": verdict.passed,
        "sentence": verdict.sentence,
        "candidate": CANDIDATE,
        "confidence": config.confidence,
        "comparisons": [_finding(finding) for finding in verdict.findings],
        "limits": plain(verdict.limits),
        "bands": plain(verdict.bands),
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
