"""The gate's other rules: numbers of the candidate that must keep to a limit, and groups of people it must not harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefrestore import artifacts
from prefrestore.config import GateBands, GateLimit
from prefrestore.errors import UserError
from prefrestore.evaluation.metrics import METRICS

Outcome = Literal["passed", "failed", "watched", "skipped"]
GROUPS = "groups.json"


@dataclass(frozen=True)
class Check:
    """One rule in words, whether it held, and what was measured."""

    rule: str
    outcome: Outcome
    why: str


def check_limits(metrics: Path, limits: Sequence[GateLimit]) -> tuple[Check, ...]:
    """Compare numbers of the artifact ``metrics`` with their limits.

    Raises:
        UserError: a number does not stand there.
    """
    return tuple(_check_limit(limit, _lookup(metrics, limit.number)) for limit in limits)


def _lookup(metrics: Path, number: str) -> Any:
    """Follow ``FILE.KEY.KEY`` into ``FILE.json``."""
    file, *keys = number.split(".")
    path = metrics / f"{file}.json"
    found = artifacts.read_json(path) if path.is_file() else None
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            raise UserError(f"gate: limits: the metrics have no number {number}: write FILE.KEY.KEY of {metrics}")
        found = found[key]
    return found


def _check_limit(limit: GateLimit, found: Any) -> Check:
    rule = f"{limit.number} at {'least' if limit.role == 'at_least' else 'most'} {limit.limit:g}"
    if limit.role == "watch":
        rule = f"{limit.number} (watched)"
    value, shown = _unfavourable_end(limit, found)
    if limit.role == "watch":
        return Check(rule, "watched", shown)
    if value is None:
        return Check(rule, "failed", "it could not be measured")
    holds = value >= limit.limit if limit.role == "at_least" else value <= limit.limit
    return Check(rule, "passed" if holds else "failed", shown)


def _unfavourable_end(limit: GateLimit, found: Any) -> tuple[float | None, str]:
    """Return the end of an estimate's interval that speaks against the candidate, or the plain number."""
    if isinstance(found, Mapping) and "mean" in found:
        low, high, mean = found["low"], found["high"], found["mean"]
        if mean is None or low is None or high is None:
            return None, "not measured"
        return (low if limit.role == "at_least" else high), f"{mean:.4g} [{low:.4g}, {high:.4g}]"
    if found is None:
        return None, "not measured"
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"gate: limits: {limit.number} is no number: name one, or an estimate with an interval")
    return float(found), f"{found:.4g}"


def check_bands(metrics: Path, bands: GateBands) -> tuple[Check, ...]:
    """Check that no group of people is served worse than base by more than a margin.

    The interval of a group's paired gains decides; a group of fewer than ``min_faces`` is watched.

    Raises:
        UserError: the metrics say nothing about groups, or not by a metric that is asked for.
    """
    path = metrics / GROUPS
    if not path.is_file():
        raise UserError(f"gate: {path} is missing: run evaluate again")
    return tuple(_check_bands(artifacts.read_json(path), bands))


def _check_bands(groups: Sequence[Mapping[str, Any]], bands: GateBands) -> Iterator[Check]:
    for group in groups:
        if group["kind"] in bands.kinds:
            for metric, margin in bands.margins.items():
                yield _check_band(group, metric, margin, bands.min_faces)


def _check_band(group: Mapping[str, Any], metric: str, margin: float, min_faces: int) -> Check:
    if metric not in group["gains"]:
        known = ", ".join(group["gains"])
        raise UserError(f"gate: bands: groups are not measured by {metric!r}: choose from {known}")
    gain = group["gains"][metric]
    rule = f"{METRICS[metric].label} for {group['kind']} {group['name']} not worse than base by more than {margin:g}"
    if gain["gain"] is None or gain["low"] is None:
        return Check(rule, "watched", f"{gain['n']} of {group['n']} faces could be compared")
    shown = f"gain {gain['gain']:+.4g} [{gain['low']:+.4g}, {gain['high']:+.4g}] over {gain['n']} faces"
    if gain["n"] < min_faces:
        return Check(rule, "watched", f"{shown}, fewer than {min_faces}")
    return Check(rule, "passed" if gain["low"] >= -margin else "failed", shown)
