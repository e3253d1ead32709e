"""Judgements: what is refused, what is flagged by name, and how agreement is counted."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrestore.data.preferences import (
    Judgement,
    agreement,
    canonical_choice,
    check_judgements,
    pair_id,
    parse_judgement,
    pixel_digest,
    read_judgements,
    side_biased,
    write_judgements,
)

LQ = "1" * 64
CANDIDATES = {("face/0", letter * 64) for letter in "abcd"}


def judgement(a: str = "a", b: str = "b", choice: str = "a", **changes: object) -> Judgement:
    first, second = a * 64, b * 64
    fields = {
        "pair_id": pair_id(LQ, first, second),
        "lq_id": "face/0",
        "lq_digest": LQ,
        "digest_a": first,
        "digest_b": second,
        "model_a": "m",
        "model_b": "m",
        "seed_a": 1,
        "seed_b": 2,
        "choice": choice,
        "annotator": "ann",
        "repeat": 0,
        "source": "human",
        "instruction": "which?",
        "time": "2026-01-02T03:04:05Z",
        "tool_version": "0",
    }
    return Judgement(**{**fields, **changes})  # type: ignore[arg-type]


def reasons(*judgements: Judgement, now: datetime | None = None) -> list[str]:
    return [rejection.reason for rejection in check_judgements(judgements, CANDIDATES, now).rejected]


def test_pair_id_does_not_depend_on_the_side() -> None:
    assert pair_id(LQ, "x", "y") == pair_id(LQ, "y", "x") != pair_id("2" * 64, "x", "y")


def test_canonical_choice_undoes_the_side() -> None:
    shown = judgement("a", "b", "a")
    swapped = replace(shown, digest_a=shown.digest_b, digest_b=shown.digest_a, choice="b")
    assert canonical_choice(shown) == canonical_choice(swapped) == "first"
    assert canonical_choice(replace(shown, choice="tie")) == "tie"


def test_good_judgements_pass_in_an_order_of_their_own() -> None:
    rows = [judgement("a", "b"), judgement("c", "d"), judgement("a", "c", annotator="other")]
    forward, backward = (check_judgements(order, CANDIDATES) for order in (rows, rows[::-1]))
    assert forward == backward
    assert len(forward.kept) == 3
    assert not forward.rejected


def test_a_vote_on_a_missing_candidate_is_refused_and_the_rest_kept() -> None:
    checked = check_judgements([judgement("a", "b"), judgement("a", "e")], CANDIDATES)
    assert len(checked.kept) == 1
    assert "is not among the candidates of face/0" in checked.rejected[0].reason


def test_a_candidate_of_another_image_is_refused() -> None:
    assert "not among the candidates of face/1" in reasons(judgement(lq_id="face/1"))[0]


def test_a_vote_arriving_twice_counts_once() -> None:
    assert len(check_judgements([judgement(), judgement()], CANDIDATES).kept) == 1


def test_the_same_answer_to_the_same_showing_later_counts_once_and_the_first_is_kept() -> None:
    late = judgement(time="2026-01-03T00:00:00Z")
    checked = check_judgements([late, judgement()], CANDIDATES)
    assert [row.time for row in checked.kept] == ["2026-01-02T03:04:05Z"]
    assert "before" in checked.rejected[0].reason


def test_contradictory_duplicates_are_all_refused_but_a_hidden_repeat_may_differ() -> None:
    twice = [judgement(choice="a"), judgement(choice="b")]
    assert len(reasons(*twice)) == 2
    assert "several answers" in reasons(*twice)[0]
    assert not reasons(judgement(choice="a"), judgement(choice="b", repeat=1))


def test_a_clock_in_the_future_is_refused_only_when_a_clock_is_given() -> None:
    now = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)
    assert not reasons(judgement(time="2026-01-02T03:04:59Z"), now=now)
    assert "future" in reasons(judgement(time="2026-01-02T03:05:01Z"), now=now)[0]
    assert not reasons(judgement(time="2999-01-01T00:00:00Z"))


def test_who_always_presses_left_is_named_and_others_are_kept() -> None:
    names = [f"{number:064x}" for number in range(40)]
    known = {("face/0", name) for name in names}
    pairs = [(names[2 * k], names[2 * k + 1]) for k in range(20)]
    rows = [replace(judgement(), digest_a=a, digest_b=b, pair_id=pair_id(LQ, a, b)) for a, b in pairs]
    fair = [replace(row, annotator="fair", choice="ab"[k % 2]) for k, row in enumerate(rows)]
    assert side_biased(rows + fair) == {"ann"}
    assert side_biased(rows[:19]) == set()
    checked = check_judgements(rows + fair, known)
    assert {row.annotator for row in checked.kept} == {"fair"}
    assert all("ann presses one side" in rejection.reason for rejection in checked.rejected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": "left"}, "choice must be one of"),
        ({"source": "robot"}, "source must be one of"),
        ({"seed_a": "1"}, "seed_a must be int"),
        ({"repeat": True}, "repeat must be int"),
        ({"repeat": -1}, "repeat must not be negative"),
        ({"annotator": None}, "annotator must be str"),
        ({"pair_id": "0"}, "does not belong"),
        ({"time": "yesterday"}, "Invalid isoformat"),
        ({"time": "2026-01-02T03:04:05"}, "name its zone"),
    ],
)
def test_malformed_rows_say_what_is_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_judgement({**asdict(judgement()), **changes})


@given(st.dictionaries(st.sampled_from(sorted(asdict(judgement()))), st.one_of(st.none(), st.text(), st.integers())))
def test_any_row_parses_or_is_a_value_error(changes: dict[str, object]) -> None:
    row = {**asdict(judgement()), **changes}
    with contextlib.suppress(ValueError):
        assert asdict(parse_judgement(row)) == row


def test_agreement_by_hand() -> None:
    # two units of two: one agrees (first, first), one does not (first, second)
    rows = [
        judgement("a", "b", "a", annotator="p"),
        judgement("a", "b", "a", annotator="q"),
        judgement("c", "d", "a", annotator="p"),
        judgement("c", "d", "b", annotator="q"),
        judgement("a", "d", "a", annotator="p"),  # judged once: counts nowhere
    ]
    # coincidences: observed disagreement 2 of 4 values; expected (3*1 + 1*3) / 3 = 2: alpha = 1 - 2/2 = 0
    assert agreement(rows) == {"couples": 2.0, "share": 0.5, "krippendorff_alpha": 0.0}
    assert math.isnan(agreement(rows[:1])["share"])


def test_pixel_digest_tells_shape_and_content() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_digest(image) == pixel_digest(image.copy()[::1]) != pixel_digest(image.reshape(4, 2, 3))


def test_judgements_survive_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [judgement("a", "b"), judgement("c", "d", "both_bad")]
    write_judgements(tmp_path / "x.parquet", rows)
    assert read_judgements(tmp_path / "x.parquet") == rows
