"""Drift: Welch's interval by an independent implementation, and its directions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prefrestore.evaluation.drift import shifts


def _estimate(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "n": len(values)}


@pytest.mark.parametrize("sizes", [(8, 8), (5, 40)])
def test_the_interval_is_scipys(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    before, now = rng.normal(20, 1, sizes[0]), rng.normal(19, 3, sizes[1])
    (row,) = shifts({"psnr": _estimate(before)}, {"psnr": _estimate(now)}, {"psnr": "higher"}, {}, 0.95)
    expected = stats.ttest_ind(now, before, equal_var=False).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("direction", "change", "worse"), [("higher", -3, True), ("higher", 3, False), ("lower", 3, True)]
)
def test_only_a_sure_loss_over_the_margin_is_drift(direction: str, change: float, worse: bool) -> None:
    before = {"m": {"mean": 10.0, "std": 1.0, "n": 100}}
    now = {"m": {"mean": 10.0 + change, "std": 1.0, "n": 100}}
    assert shifts(before, now, {"m": direction}, {}, 0.95)[0].worse is worse
    assert shifts(before, now, {"m": direction}, {"m": 3.0}, 0.95)[0].worse is False


def test_metrics_without_spread_are_left_out_and_the_level_is_shared() -> None:
    row = {"mean": 1.0, "std": 1.0, "n": 9}
    rows = {
        "a": row,
        "b": row,
        "one": {**row, "n": 1},
        "none": {**row, "std": None},
        "nan": {**row, "std": float("nan")},
    }
    found = shifts(rows, {**rows, "new": row}, dict.fromkeys([*rows, "new"], "higher"), {}, 0.95)
    assert [shift.metric for shift in found] == ["a", "b"]
    alone = shifts({"a": row}, {"a": row}, {"a": "higher"}, {}, 0.975)
    assert found[0].high == pytest.approx(alone[0].high)
