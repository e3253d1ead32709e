"""Intervals, corrections and verdicts: do they err as often as they say?"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from skimage.data import astronaut

from prefrestore.evaluation import metrics
from prefrestore.evaluation.significance import (
    Question,
    Resampling,
    classify,
    compare,
    correct,
    estimate,
    holm,
    mean_interval,
    p_not_above,
)

HOW = Resampling(confidence=0.95, resamples=1000, seed=0)
REPEATS = 600


def test_interval_of_normal_values_is_students() -> None:
    values = np.random.default_rng(1).normal(3, 2, 40)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    np.testing.assert_allclose(mean_interval(values, Resampling(0.95, 20000, 0)), expected, atol=0.04)


@pytest.mark.parametrize("n", [8, 48])
def test_interval_holds_the_true_mean_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(REPEATS):
        low, high = mean_interval(rng.normal(0, 1, n), HOW)
        hits += low <= 0 <= high
    assert 0.92 <= hits / REPEATS <= 0.98  # a plain percentile interval holds it in 90 % at n = 8


def test_too_few_faces_give_no_interval() -> None:
    one = estimate(np.array([2.0, np.nan, np.inf]), HOW)
    assert (one.mean, one.n, one.nan) == (2.0, 1, 2)
    assert np.isnan([one.std, one.low, one.high]).all()
    assert p_not_above(np.array([2.0]), 0.0) == 1.0


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_plain_and_bonferronis_values(p_values: list[float]) -> None:
    plain = np.array(p_values)
    adjusted = holm(plain)
    assert (adjusted >= plain - 1e-12).all()
    assert (adjusted <= np.minimum(plain * len(plain), 1) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(plain, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "better"),
        (-0.05, 0.3, "not worse"),
        (-0.3, 0.3, "unclear"),
        (-0.3, -0.1, "worse"),
        (0, 0, "not worse"),
    ],
)
def test_what_an_interval_settles(low: float, high: float, expected: str) -> None:
    assert classify(low, high, margin=0.1) == expected


def test_direction_turns_the_sign_of_the_gain() -> None:
    a, b = np.array([1.0, 2.0, 3.5]), np.array([2.0, 3.5, 4.0])
    higher = compare(Question("psnr", "policy", "base", 0), a, b, HOW)
    lower = compare(Question("landmark_distance", "policy", "base", 0), a, b, HOW)
    assert higher.gain == -lower.gain == pytest.approx(-1.0)
    assert lower.outcome == "better"
    assert higher.outcome == "worse"


def test_pairs_lacking_a_value_are_counted_and_left_out_of_both_means() -> None:
    found = compare(
        Question("psnr", "policy", "base", 0), np.array([1.0, np.nan, 3.0]), np.array([0.0, 50.0, np.nan]), HOW
    )
    assert (found.n, found.nan, found.candidate_mean, found.against_mean) == (1, 2, 1.0, 0.0)


def _psnr_like(rng: np.random.Generator, change: float) -> tuple[np.ndarray, np.ndarray]:
    """Two columns over 48 faces: faces differ by 3 dB, methods on one face by 0.5 dB around ``change``."""
    faces = rng.normal(25, 3, 48)
    return faces + rng.normal(change, 0.5, 48), faces


def test_a_slightly_worse_model_is_rejected_and_an_identical_one_is_not() -> None:
    """0.3 dB lost, a tenth of the spread between faces: only pairing can see it."""
    rng = np.random.default_rng(5)
    question = Question("psnr", "policy", "base", margin=0.2)
    worse = [compare(question, *_psnr_like(rng, -0.3), HOW).outcome for _ in range(REPEATS)]
    equal = [compare(question, *_psnr_like(rng, 0.0), HOW).outcome for _ in range(REPEATS)]
    assert worse.count("worse") / REPEATS > 0.9
    assert worse.count("not worse") / REPEATS < 0.12  # within the margin of 0.2 in truth never, by chance seldom
    assert (equal.count("worse") + equal.count("better")) / REPEATS < 0.075
    assert equal.count("worse") / REPEATS < 0.04


def test_many_metrics_raise_few_false_alarms() -> None:
    """A family of ten metrics of an identical model: in 5 % of evaluations at most one claim, not in 40 %."""
    rng = np.random.default_rng(6)
    fast, repeats = Resampling(0.95, 300, 0), 150
    plain = corrected = 0
    for _ in range(repeats):
        rows = [compare(Question("psnr", "policy", "base", 0.2), *_psnr_like(rng, 0.0), fast) for _ in range(10)]
        plain += any(row.outcome in ("better", "worse") for row in rows)
        corrected += any(row.outcome in ("better", "worse") for row in correct(rows, 0.95))
    assert plain / repeats > 0.25
    assert corrected / repeats < 0.08


def test_an_identical_model_is_not_worse() -> None:
    same = np.random.default_rng(0).normal(25, 3, 20)
    found = compare(Question("psnr", "policy", "base", 0.0), same, same, HOW)
    assert (found.outcome, found.p_better, found.p_worse) == ("not worse", 1.0, 1.0)


# --- pictures, not numbers: a restorer that is made worse on purpose ------------------------------

FAMILY = {"psnr": 0.1, "sharpness": 0.02}
"""Metrics compared together, and the loss of each that does not matter."""


def _restorations(repeat: int, role: str, fading: float) -> dict[str, np.ndarray]:
    """Two samples of 24 faces by a restorer that leaves noise of its own; ``fading`` is the contrast it loses.

    The faces are crops of one photograph; a restorer's noise depends on the repeat, its role, the face and the sample.
    """
    rng = np.random.default_rng([repeat, len(role)])
    grey = cv2.resize(astronaut()[:256, 100:356], (96, 96), interpolation=cv2.INTER_AREA)
    corners = [(row, column) for row in range(0, 64, 16) for column in range(0, 60, 10)]
    hq = np.stack([grey[row : row + 32, column : column + 32] for row, column in corners])
    energies = [metrics.high_band_energy(image) for image in hq]
    strength = rng.uniform(6, 18, (2, len(hq), 1, 1, 1))  # one face comes out well, another badly
    drawn = 128 + (1 - fading) * (hq - 128.0) + strength * rng.normal(size=(2, *hq.shape))
    samples = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
    functions = {
        "psnr": lambda image, row: metrics.psnr(image, hq[row]),
        "sharpness": lambda image, row: metrics.sharpness(image, energies[row]),
    }
    return {
        name: np.array([[measured(image, row) for row, image in enumerate(sample)] for sample in samples]).mean(0)
        for name, measured in functions.items()
    }


def _outcomes(repeat: int, fading: float) -> dict[str, str]:
    base, policy = _restorations(repeat, "base", 0.0), _restorations(repeat, "policy", fading)
    fast = Resampling(0.95, 300, 0)
    rows = [
        compare(Question(name, "policy", "base", margin), policy[name], base[name], fast)
        for name, margin in FAMILY.items()
    ]
    return {row.metric: row.outcome for row in correct(rows, 0.95)}


def test_pictures_of_a_faded_model_are_rejected_and_those_of_the_same_model_are_not() -> None:
    """A seventh of the contrast lost is seen; of the same model, drawn anew, one family in twenty errs."""
    faded = [_outcomes(repeat, 0.15) for repeat in range(15)]
    assert sum("worse" in found.values() for found in faded) >= 14
    assert not any("better" in found.values() for found in faded)
    same = [_outcomes(1000 + repeat, 0.0) for repeat in range(60)]
    alarms = sum(any(outcome in ("better", "worse") for outcome in found.values()) for found in same)
    assert alarms <= 8  # of 60 at 5 %: more than 8 in less than one of a hundred tests
