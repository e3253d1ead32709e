"""The gate's rules on tables whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefrestore.config import GateBands, GateConfig, GateLimit, GateRule
from prefrestore.errors import UserError
from prefrestore.evaluation.gate import judge, judge_metrics
from prefrestore.evaluation.table import PER_SAMPLE, per_face
from prefrestore.stages import gate

NO_BANDS = GateBands(kinds=(), margins={}, min_faces=1)


def table(policy_gain: float, *, faces: int = 24, missing: int = 0, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Two samples of every face; the policy's identity is ``policy_gain`` above base's, give or take 0.01."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.8, faces)
    rows = []
    for column in ("base", "policy", *columns):
        for face in range(faces):
            for sample in range(2):
                value = base[face] + (rng.normal(policy_gain, 0.01) if column == "policy" else 0.0)
                unknown = column == "policy" and face < missing and sample == 1
                known = np.nan if unknown else value
                rows.append({"column": column, "id": f"{face:03}", "sample": sample, "identity_similarity": known})
    return pd.DataFrame(rows)


def config(*rules: tuple[str, str, str, float]) -> GateConfig:
    names = ("metric", "against", "role", "margin")
    built = tuple(GateRule(**dict(zip(names, rule, strict=True))) for rule in rules)
    return GateConfig(rules=built, limits=(), bands=NO_BANDS, confidence=0.95, bootstrap=500, seed=0)


IMPROVE = ("identity_similarity", "base", "improve", 0.0)
NOT_WORSE = ("identity_similarity", "base", "not_worse", 0.02)


@pytest.mark.parametrize(
    ("gain", "rule", "passed"),
    [
        (0.05, IMPROVE, True),
        (0.0, IMPROVE, False),
        (0.05, ("identity_similarity", "base", "improve", 0.1), False),
        (0.0, NOT_WORSE, True),
        (-0.01, NOT_WORSE, True),
        (-0.05, NOT_WORSE, False),
    ],
)
def test_roles(gain: float, rule: tuple[str, str, str, float], passed: bool) -> None:
    verdict = judge(per_face(table(gain)), config(rule))
    assert verdict.passed is passed
    assert verdict.findings[0].outcome == ("passed" if passed else "failed")


def test_one_failing_rule_fails_the_gate_and_is_named() -> None:
    verdict = judge(per_face(table(-0.01)), config(NOT_WORSE, IMPROVE))
    assert not verdict.passed
    assert "1 of 2 required rules fail (Identity better than base" in verdict.sentence


def test_watching_never_decides() -> None:
    watched = ("identity_similarity", "base", "watch", 0.0)
    assert judge(per_face(table(-0.5)), config(watched, ("identity_similarity", "base", "not_worse", 1.0))).passed
    alone = judge(per_face(table(0.5)), config(watched))
    assert not alone.passed
    assert "no rule could decide" in alone.sentence


def test_rules_against_a_missing_champion_are_skipped_and_say_so() -> None:
    rule = ("identity_similarity", "champion", "not_worse", 0.02)
    verdict = judge(per_face(table(0.05)), config(IMPROVE, rule))
    assert verdict.passed
    assert [finding.outcome for finding in verdict.findings] == ["passed", "skipped"]
    assert "1 rules against the champion were skipped" in verdict.sentence
    with_champion = judge(per_face(table(-0.05, columns=("champion",))), config(rule))
    assert not with_champion.passed


def test_a_face_with_one_unknown_sample_is_left_out_and_counted() -> None:
    finding = judge(per_face(table(0.05, missing=5)), config(IMPROVE)).findings[0]
    assert finding.measured is not None
    assert (finding.measured.n, finding.measured.nan) == (19, 5)
    assert "5 not measured" in finding.why


def test_nothing_to_compare_fails() -> None:
    verdict = judge(per_face(table(0.05, missing=24)), config(NOT_WORSE))
    assert not verdict.passed
    assert "only 0 faces" in verdict.sentence


@pytest.mark.parametrize("rule", [("no_metric", "base", "watch", 0.0), ("identity_similarity", "lq", "watch", 0.0)])
def test_unknown_names_are_the_users_mistake(rule: tuple[str, str, str, float]) -> None:
    with pytest.raises(UserError, match="gate"):
        judge(per_face(table(0.0)), config(rule))


def test_the_stage_writes_every_comparison_and_repeats(tmp_path: Path) -> None:
    table(0.05, missing=24).to_parquet(tmp_path / PER_SAMPLE)
    (tmp_path / "groups.json").write_text("[]")
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        gate.run(config(NOT_WORSE, IMPROVE), metrics=tmp_path, verdict=tmp_path / name)
        written.append((tmp_path / name / "verdict.json").read_text())
    verdict = json.loads(written[0])
    assert written[0] == written[1]
    assert verdict["passed"] is False
    assert [row["outcome"] for row in verdict["comparisons"]] == ["failed", "failed"]
    assert verdict["comparisons"][0]["measured"]["gain"] is None  # not measured is null, never 0


def _metrics(folder: Path, gain: float = 0.0, low: float = -0.01, faces: int = 20) -> Path:
    """An artifact ``metrics`` whose policy improves, with a cost, an uncertainty and one group of people."""
    table(0.05).to_parquet(folder / PER_SAMPLE)
    measured = {"gain": gain, "low": low, "high": 2 * gain - low, "n": faces}
    group = {"kind": "skin tone", "name": "dark", "n": faces, "gains": {"identity_similarity": measured}}
    rank = {"mean": 0.3, "low": 0.1, "high": 0.5}
    files = {"groups": [group], "cost": {"flops": 100, "unknown": None, "kind": "cpu"}, "uncertainty": {"rank": rank}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("number", "role", "limit", "outcome"),
    [
        ("cost.flops", "at_most", 100.0, "passed"),
        ("cost.flops", "at_most", 99.0, "failed"),
        ("cost.flops", "at_least", 101.0, "failed"),
        ("cost.flops", "watch", 0.0, "watched"),
        ("cost.unknown", "at_most", 100.0, "failed"),
        ("uncertainty.rank", "at_least", 0.1, "passed"),
        ("uncertainty.rank", "at_least", 0.2, "failed"),  # the mean would pass, its interval does not
        ("uncertainty.rank", "at_most", 0.4, "failed"),
    ],
)
def test_limits_look_at_the_unfavourable_end(
    number: str, role: str, limit: float, outcome: str, tmp_path: Path
) -> None:
    limits = (GateLimit(number=number, role=role, limit=limit),)
    verdict = judge_metrics(_metrics(tmp_path), config(IMPROVE).model_copy(update={"limits": limits}))
    assert [check.outcome for check in verdict.limits] == [outcome]
    assert verdict.passed is (outcome != "failed")
    assert ("1 of 2 required rules fail" in verdict.sentence) is (outcome == "failed")


@pytest.mark.parametrize("number", ["cost.nothing", "nowhere.flops", "cost", "cost.kind", "cost.flops.more"])
def test_a_limit_on_what_is_no_number_is_the_users_mistake(number: str, tmp_path: Path) -> None:
    limits = (GateLimit(number=number, role="at_most", limit=1.0),)
    with pytest.raises(UserError, match="gate: limits"):
        judge_metrics(_metrics(tmp_path), config(IMPROVE).model_copy(update={"limits": limits}))


@pytest.mark.parametrize(
    ("low", "faces", "outcome"), [(-0.04, 20, "passed"), (-0.06, 20, "failed"), (-0.06, 9, "watched")]
)
def test_a_group_that_is_served_worse_stops_the_release(low: float, faces: int, outcome: str, tmp_path: Path) -> None:
    bands = GateBands(kinds=("skin tone",), margins={"identity_similarity": 0.05}, min_faces=10)
    verdict = judge_metrics(
        _metrics(tmp_path, low=low, faces=faces), config(IMPROVE).model_copy(update={"bands": bands})
    )
    assert [check.outcome for check in verdict.bands] == [outcome]
    assert verdict.passed is (outcome != "failed")


def test_limits_alone_publish_nothing(tmp_path: Path) -> None:
    limits = (GateLimit(number="cost.flops", role="at_most", limit=100.0),)
    watched = ("identity_similarity", "base", "watch", 0.0)
    verdict = judge_metrics(_metrics(tmp_path), config(watched).model_copy(update={"limits": limits}))
    assert not verdict.passed
    assert "no rule could decide" in verdict.sentence
