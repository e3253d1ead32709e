"""When new judgements start an alignment: the guards hold whatever comes, and nothing waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrestore_loop.settings import Settings, parse
from prefrestore_loop.watermark import DAY, Limits, Watermark, decide

LIMITS = Limits(minimum=10, max_wait=1000.0, cooldown=100.0, per_day=2)


@pytest.mark.parametrize(
    ("before", "valid", "now", "fire"),
    [
        (Watermark(), 0, 0.0, False),
        (Watermark(), 9, 0.0, False),
        (Watermark(), 10, 0.0, True),
        (Watermark(20), 29, 0.0, False),
        (Watermark(20), 30, 0.0, True),
        (Watermark(20), 15, 0.0, False),  # taken back
        (Watermark(0, (), 0.0), 1, 999.0, False),
        (Watermark(0, (), 0.0), 1, 1000.0, True),
        (Watermark(0, (0.0,)), 50, 99.0, False),  # cooldown
        (Watermark(0, (0.0,)), 50, 100.0, True),
        (Watermark(0, (0.0, 200.0)), 50, 1000.0, False),  # two a day
        (Watermark(0, (0.0, 200.0)), 50, DAY, True),
    ],
)
def test_each_guard(before: Watermark, valid: int, now: float, fire: bool) -> None:
    after, fired = decide(before, valid, now, LIMITS)
    assert fired == fire
    assert after.judgements == (valid if fire else before.judgements)
    assert Watermark.parse(after.plain()) == after


@given(st.lists(st.tuples(st.floats(1, DAY / 2), st.integers(-5, 30)), max_size=60))
def test_guards_hold_and_nothing_waits_for_ever(steps: list[tuple[float, int]]) -> None:
    now, valid, mark = 0.0, 0, Watermark()
    times = []
    for pause, new in [*steps, *[(LIMITS.max_wait, 0)] * 200]:
        now, valid = now + pause, max(0, valid + new)
        mark, fired = decide(mark, valid, now, LIMITS)
        times += [now] if fired else []
    assert all(later - first >= LIMITS.cooldown for first, later in zip(times, times[1:], strict=False))
    assert all(later - first >= DAY for first, later in zip(times, times[LIMITS.per_day :], strict=False))
    assert mark.judgements >= valid
    assert mark.since is None


def test_settings_come_from_the_environment() -> None:
    assert parse({"HOME": "/"}) == Settings()
    given_values = {
        "PREFRESTORE_LOOP_MINIMUM": "7",
        "PREFRESTORE_LOOP_STORE": "s3://b",
        "PREFRESTORE_LOOP_REGISTRY": "r",
    }
    found = parse(given_values)
    assert (found.minimum, found.store, found.places()) == (7, "s3://b", {"registry": "r"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MINIMUM", "many", "'many' is no whole number"),
        ("MINIMUM", "-1", "no whole number of at least 0"),
        ("COOLDOWN_HOURS", "nan", "'nan' is no number"),
        ("MINIMUN", "1", "MINIMUN: unknown: choose from store, minimum"),
    ],
)
def test_a_bad_setting_is_one_line(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({f"PREFRESTORE_LOOP_{name}": value})
