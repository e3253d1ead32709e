"""The gate: declared rules, paired statistics on the frozen faces, one verdict.

Every required rule must hold on its own interval. That needs no correction for their number: a model that violates one
rule passes at most as often as that rule's test errs, (1 - confidence) / 2 (intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from prefrestore.config import GateConfig, GateRule
from prefrestore.errors import UserError
from prefrestore.evaluation.metrics import METRICS
from prefrestore.evaluation.significance import Comparison, Question, Resampling, compare
from prefrestore.evaluation.table import CANDIDATE, values_of

Outcome = Literal["passed", "failed", "watched", "skipped"]


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


def judge(faces: pd.DataFrame, config: GateConfig) -> Verdict:
    """Apply the rules to values per face (``evaluation.table.per_face``).

    Raises:
        UserError: a rule names an unknown metric, or a column other than the champion is missing.
    """
    findings = tuple(_apply(rule, faces, config) for rule in config.rules)
    failed = [finding for finding in findings if finding.outcome == "failed"]
    decided = [finding for finding in findings if finding.outcome in ("passed", "failed")]
    passed = bool(decided) and not failed
    return Verdict(passed, _sentence(findings, passed), findings)


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


def _sentence(findings: Sequence[Finding], passed: bool) -> str:
    decided = [finding for finding in findings if finding.outcome in ("passed", "failed")]
    failed = [finding for finding in decided if finding.outcome == "failed"]
    skipped = sum(finding.outcome == "skipped" for finding in findings)
    note = f" {skipped} rules against the champion were skipped: there is none yet." if skipped else ""
    if not decided:
        return f"Not passed: no rule could decide.{note}"
    if passed:
        return f"Passed: all {len(decided)} required rules hold.{note}"
    reasons = "; ".join(f"{describe(finding.rule)}: {finding.why}" for finding in failed)
    return f"Not passed: {len(failed)} of {len(decided)} required rules fail ({reasons}).{note}"
