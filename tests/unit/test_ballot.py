"""Who is shown which pair, and that no vote is lost, doubled or seen twice."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from prefrestore.data.preferences import agreement, pair_id
from prefrestore.data.vote_checks import consistency
from prefrestore.data.vote_store import read
from prefrestore.errors import UserError
from prefrestore.serving import ballot as module
from prefrestore.serving.ballot import REPEAT_GAP, Ballot
from prefrestore.serving.deck import Pair, Shown, in_rounds, information_gain

QUESTION = "which?"


def deck(count: int, faces: int = 1) -> list[Pair]:
    pairs = []
    for number in range(count):
        first, second = (Shown(f"{number:03d}{side}", "model", place, b"png") for place, side in enumerate("ab"))
        group = f"face{number % faces}/0"
        name = pair_id("lq", first.digest, second.digest)
        pairs.append(Pair(name, group, "lq", b"lq", first, second, float(count - number)))
    return pairs


def answer(ballot: Ballot, name: str, choice: str = "a") -> str:
    asked = ballot.current(name)
    assert asked is not None
    assert ballot.vote(name, asked.token, choice)
    return asked.pair.pair_id


def test_every_pair_comes_once_the_most_informative_first(tmp_path: Path) -> None:
    pairs = deck(12)
    ballot = Ballot(tmp_path, pairs, QUESTION, 0)
    seen = [answer(ballot, "ann") for _ in pairs]
    assert seen == [pair.pair_id for pair in pairs]
    assert ballot.current("ann") is None
    votes = read(tmp_path).judgements
    assert {row.pair_id for row in votes} == set(seen)
    assert {(row.source, row.instruction, row.annotator) for row in votes} == {("human", QUESTION, "ann")}


def test_a_vote_is_kept_before_the_next_pair_and_a_failed_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballot = Ballot(tmp_path, deck(3), QUESTION, 0)
    answer(ballot, "ann")
    assert len(read(tmp_path).judgements) == 1
    asked = ballot.current("ann")
    assert asked is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "append", full)
    with pytest.raises(OSError, match="No space"):
        ballot.vote("ann", asked.token, "b")
    assert ballot.current("ann") is asked
    assert ballot.progress("ann").done == 1


def test_a_second_press_on_the_same_showing_is_no_vote(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path, deck(3), QUESTION, 0)
    asked = ballot.current("ann")
    assert asked is not None
    assert ballot.vote("ann", asked.token, "a")
    assert not ballot.vote("ann", asked.token, "b")
    assert [row.choice for row in read(tmp_path).judgements] == ["a"]
    with pytest.raises(ValueError, match="choice"):
        ballot.vote("ann", asked.token, "undo")


def test_sides_are_shuffled_and_do_not_follow_the_repeat(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path, deck(200), QUESTION, 0)
    left = Counter()
    for _ in range(200):
        asked = ballot.current("ann")
        assert asked is not None
        left[asked.left is asked.pair.first] += 1
        ballot.vote("ann", asked.token, "tie")
    assert 70 < left[True] < 130
    by_pair = {row.pair_id: row for row in read(tmp_path).judgements}
    assert {row.digest_a < row.digest_b for row in by_pair.values()} == {True, False}


def test_hidden_repeats_come_after_a_gap_and_once(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path, deck(60), QUESTION, 4)
    order = [answer(ballot, "ann") for _ in range(40)]
    counts = Counter(order)
    repeats = [row for row in read(tmp_path).judgements if row.repeat]
    assert len(repeats) == sum(count == 2 for count in counts.values()) == 9
    assert max(counts.values()) == 2
    assert all(
        np.diff([place for place, pair in enumerate(order) if pair == row.pair_id])[0] > REPEAT_GAP for row in repeats
    )
    assert consistency(read(tmp_path).judgements) is not None


def test_undo_asks_the_same_again_and_the_new_answer_stands(tmp_path: Path) -> None:
    frozen = datetime(2026, 1, 1, tzinfo=UTC)
    ballot = Ballot(tmp_path, deck(5), QUESTION, 0, clock=lambda: frozen)
    assert not ballot.undo("ann")
    first = ballot.current("ann")
    assert first is not None
    ballot.vote("ann", first.token, "a")
    second = answer(ballot, "ann", "b")
    assert ballot.undo("ann")
    assert ballot.current("ann").pair.pair_id == second  # type: ignore[union-attr]
    assert ballot.undo("ann")
    again = ballot.current("ann")
    assert again is not None
    assert (again.pair, again.left) == (first.pair, first.left)
    assert read(tmp_path).judgements == ()
    ballot.vote("ann", again.token, "both_bad")
    assert [row.choice for row in read(tmp_path).judgements] == ["both_bad"]
    assert answer(ballot, "ann", "b") == second
    assert ballot.progress("ann").done == 2


def test_a_new_process_goes_on_where_the_old_one_was(tmp_path: Path) -> None:
    pairs = deck(9)
    before = Ballot(tmp_path, pairs, QUESTION, 0)
    seen = [answer(before, "ann") for _ in range(4)]
    after = Ballot(tmp_path, pairs, QUESTION, 0)
    after.join("ann")
    assert after.progress("ann").done == 4
    assert after.undo("ann")
    rest = [answer(after, "ann") for _ in range(6)]
    assert rest[0] == seen[-1]
    assert sorted(seen[:3] + rest) == sorted(pair.pair_id for pair in pairs)


def test_annotators_share_the_work_and_overlap_a_little(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path, deck(200), QUESTION, 0)
    for _ in range(40):
        for name in ("ann", "bob"):
            answer(ballot, name)
    votes = read(tmp_path).judgements
    doubled = [pair for pair, count in Counter(row.pair_id for row in votes).items() if count == 2]
    assert 10 <= len(doubled) <= 20
    assert agreement(votes)["couples"] == len(doubled)


def test_what_two_contradict_each_other_on_comes_first_to_a_third(tmp_path: Path) -> None:
    pairs = deck(20)
    ballot = Ballot(tmp_path, pairs, QUESTION, 0)
    for name in ("ann", "bob"):
        for _ in range(19):
            asked = ballot.current(name)
            assert asked is not None
            first_is_left = asked.left is asked.pair.first
            ballot.vote(name, asked.token, "a" if first_is_left == (name == "ann") else "b")
    votes = Counter(row.pair_id for row in read(tmp_path).judgements)
    assert votes[answer(ballot, "cleo")] == 2


def test_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    pairs = deck(30)
    ballots = [Ballot(tmp_path, pairs, QUESTION, 0) for _ in range(2)]  # two processes' worth
    names = [f"annotator{number}" for number in range(6)]

    def work(name: str, ballot: Ballot) -> None:
        ballot.join(name)
        while ballot.current(name) is not None:
            answer(ballot, name)

    threads = [threading.Thread(target=work, args=(name, ballots[k % 2])) for k, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = Counter((row.annotator, row.pair_id) for row in read(tmp_path).judgements)
    assert len(votes) == len(names) * len(pairs)
    assert set(votes.values()) == {1}


def test_information_is_what_members_contradict_each_other_on() -> None:
    assert information_gain(np.array([2.0, 2.0])) == pytest.approx(0, abs=1e-12)
    assert information_gain(np.array([0.0, 0.0])) == pytest.approx(0, abs=1e-12)
    sure = information_gain(np.array([20.0, -20.0]))
    assert sure == pytest.approx(np.log(2), abs=1e-6)
    assert information_gain(np.array([1.0, -1.0])) < sure
    assert information_gain(np.array([3.0, 1.0])) > 0


def test_every_face_has_its_turn_before_any_has_its_second() -> None:
    ordered = in_rounds(deck(12, faces=4))
    assert [len({pair.lq_id for pair in ordered[k : k + 4]}) for k in (0, 4, 8)] == [4, 4, 4]
    assert ordered[0].information == 12.0


def test_a_missing_bucket_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Ballot("s3://", deck(2), QUESTION, 0).join("ann")
    Ballot(tmp_path / "new", deck(2), QUESTION, 0).join("ann")


def test_a_token_of_any_text_is_refused_not_a_fault(tmp_path: Path) -> None:
    ballot = Ballot(tmp_path, deck(2), QUESTION, 0)
    assert ballot.current("ann") is not None
    for token in ("", "é", "\ud800", "x" * 10_000):
        assert ballot.vote("ann", token, "a") is False
    assert not (tmp_path / "preferences").exists()
