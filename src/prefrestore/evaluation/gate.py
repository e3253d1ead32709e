"""The gate: declared rules, paired statistics on the frozen faces, one verdict.

Every required rule must hold on its own interval. That needs no correction for their number: a model that violates one
rule passes at most as often as that rule's test errs, (1 - confidence) / 2 (intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from prefrestore.config import GateConfig, GateRule
from prefrestore.errors import UserError
from prefrestore.evaluation.limits import Check, Outcome, check_bands, check_limits
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.significance import Comparison, Question, Resampling, compare
from prefrestore.evaluation.table import CANDIDATE, PER_SAMPLE, per_face, values_of


@dataclass(frozen=True)
class Finding:
    """One rule, what was measured, and what follows."""

    rule: GateRule
    outcome: Outcome
    why: str
    measured: Comparison | None


@dataclass(frozen=True)
class Verdict:
    """Whether the policy may be published, and why."""

    passed: bool
    sentence: str
    findings: tuple[Finding, ...]
    limits: tuple[Check, ...] = ()
    bands: tuple[Check, ...] = ()


def judge_metrics(metrics: Path, config: GateConfig) -> Verdict:
    """Apply all rules to an artifact ``metrics``.

    Raises:
        UserError: as :func:`judge`, ``check_limits`` and ``check_bands``, or the table of values is missing.
    """
    table = metrics / PER_SAMPLE
    if not table.is_file():
        raise UserError(f"gate: {table} is missing: run evaluate again")
    compared = judge(per_face(pd.read_parquet(table)), config)
    limits, bands = check_limits(metrics, config.limits), check_bands(metrics, config.bands)
    return _verdict(compared.findings, limits, bands)


def judge(faces: pd.DataFrame, config: GateConfig) -> Verdict:
    """Apply the paired rules to values per face (``evaluation.table.per_face``).

    Raises:
        UserError: a rule names an unknown metric, or a column other than the champion is missing.
    """
    return _verdict(tuple(_apply(rule, faces, config) for rule in config.rules), (), ())


def _verdict(findings: tuple[Finding, ...], limits: tuple[Check, ...], bands: tuple[Check, ...]) -> Verdict:
    """Passed is what was compared and holds: limits and bands alone give no right to be published."""
    compared = [Check(describe(finding.rule), finding.outcome, finding.why) for finding in _decided(findings)]
    required = [*compared, *(check for check in (*limits, *bands) if check.outcome != "watched")]
    passed = bool(compared) and all(check.outcome == "passed" for check in required)
    return Verdict(passed, _sentence(required if compared else [], _skipped(findings), passed), findings, limits, bands)


def _decided(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.outcome in ("passed", "failed")]


def _skipped(findings: Sequence[Finding]) -> int:
    return sum(finding.outcome == "skipped" for finding in findings)


def _apply(rule: GateRule, faces: pd.DataFrame, config: GateConfig) -> Finding:
    if rule.metric not in METRICS:
        raise UserError(f"gate: rules: no metric is called {rule.metric!r}: choose from {', '.join(METRICS)}")
    columns = set(faces.index.get_level_values("column"))
    if rule.against == "champion" and "champion" not in columns:
        return Finding(rule, "skipped", "there is no champion yet", None)
    if missing := {CANDIDATE, rule.against} - columns or {rule.metric} - set(faces.columns):
        raise UserError(f"gate: the metrics have no {sorted(missing)[0]}: run evaluate again")
    measured = compare(
        Question(rule.metric, CANDIDATE, rule.against, rule.margin),
        values_of(faces, CANDIDATE, rule.metric),
        values_of(faces, rule.against, rule.metric),
        Resampling(config.confidence, config.bootstrap, config.seed),
    )
    return decide(rule, measured)


def decide(rule: GateRule, measured: Comparison) -> Finding:
    """Decide one rule from the interval of its gains; too few faces to tell is a failure, not a pass."""
    digits = METRICS[rule.metric].digits + 1
    interval = f"gain {measured.gain:+.{digits}f} [{measured.low:+.{digits}f}, {measured.high:+.{digits}f}]"
    seen = f"{interval} over {measured.n} faces" + (f", {measured.nan} not measured" if measured.nan else "")
    if rule.role == "watch":
        return Finding(rule, "watched", seen, measured)
    if measured.n < 2:
        return Finding(rule, "failed", f"only {measured.n} faces could be compared", measured)
    holds = measured.low > rule.margin if rule.role == "improve" else measured.low >= -rule.margin
    return Finding(rule, "passed" if holds else "failed", seen, measured)


def describe(rule: GateRule) -> str:
    """Return the rule in words."""
    label = METRICS[rule.metric].label
    if rule.role == "improve":
        return f"{label} better than {rule.against}" + (f" by more than {rule.margin:g}" if rule.margin else "")
    if rule.role == "not_worse":
        return f"{label} not worse than {rule.against}" + (f" by more than {rule.margin:g}" if rule.margin else "")
    return f"{label} against {rule.against} (watched)"


def _sentence(required: Sequence[Check], skipped: int, passed: bool) -> str:
    note = f" {skipped} rules against the champion were skipped: there is none yet." if skipped else ""
    if not required:
        return f"Not passed: no rule could decide.{note}"
    if passed:
        return f"Passed: all {len(required)} required rules hold.{note}"
    failed = [check for check in required if check.outcome == "failed"]
    reasons = "; ".join(f"{check.rule}: {check.why}" for check in failed)
    return f"Not passed: {len(failed)} of {len(required)} required rules fail ({reasons}).{note}"
