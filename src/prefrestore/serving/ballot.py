"""Who is shown which pair next, and what becomes of a vote; several annotators at once."""

from __future__ import annotations

import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prefrestore import __version__
from prefrestore.data.preferences import (
    CHOICES,
    UNDO,
    Judgement,
    canonical_choice,
    judgement_id,
    parse_time,
    settle,
)
from prefrestore.data.vote_store import append, read
from prefrestore.runtime import seeding
from prefrestore.runtime.shelf import Place, open_shelf
from prefrestore.serving.deck import Pair, Shown

REPEAT_GAP = 5
"""How many other pairs lie between a pair and its hidden repeat, at least."""
SHARED_EVERY = 5
"""Every so many turns a pair that one other annotator has judged comes, so that agreement can be measured."""


@dataclass(frozen=True)
class Asked:
    """A pair as an annotator sees it; ``token`` names this showing and says nothing about it."""

    pair: Pair
    repeat: int
    left: Shown
    right: Shown
    token: str


@dataclass(frozen=True)
class Progress:
    """How far an annotator is: answers given, and pairs not seen yet."""

    done: int
    left: int


@dataclass
class _Annotator:
    name: str
    answers: list[Judgement] = field(default_factory=list)  # those that stand, oldest first
    current: Asked | None = None
    last_time: datetime = datetime.min.replace(tzinfo=UTC)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def repeats(self) -> dict[str, int]:
        """Return how often each pair was answered."""
        counts: dict[str, int] = defaultdict(int)
        for answer in self.answers:
            counts[answer.pair_id] += 1
        return counts


class Ballot:
    """Hands out pairs and keeps votes; safe to call from several threads."""

    def __init__(
        self,
        store: Place,
        deck: Sequence[Pair],
        question: str,
        repeat_every: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make a ballot.

        Args:
            store: where votes go.
            deck: pairs, the most informative first.
            question: the instruction that stands in every record.
            repeat_every: one of so many showings is a hidden repeat; 0: none.
            clock: gives the present time, UTC.
        """
        self._store, self._question, self._repeat_every, self._clock = store, question, repeat_every, clock
        self._deck: Mapping[str, Pair] = {pair.pair_id: pair for pair in deck}
        self._lock = threading.RLock()
        self._annotators: dict[str, _Annotator] = {}
        self._records: dict[str, Judgement] = {}
        self._shards: set[str] = set()

    def join(self, name: str) -> None:
        """Let an annotator begin or go on: what the store holds of everybody is taken in."""
        if open_shelf(self._store).exists():
            votes = read(self._store, tuple(self._shards))
            with self._lock:
                self._shards.update(votes.shards)
                self._records |= {judgement_id(row): row for row in (*votes.judgements, *votes.undos)}
        with self._lock:
            for other in {name, *(row.annotator for row in self._records.values())}:
                self._settle(self._state(other))

    def _settle(self, state: _Annotator) -> None:
        """Bring an annotator's answers in step with the records."""
        own = [row for row in self._records.values() if row.annotator == state.name and row.pair_id in self._deck]
        standing, _ = settle(own)
        answers: dict[tuple[str, int], Judgement] = {}
        for row in sorted(standing, key=lambda row: parse_time(row.time)):
            answers.setdefault((row.pair_id, row.repeat), row)
        state.answers = list(answers.values())
        state.last_time = max((parse_time(row.time) for row in own), default=state.last_time)
        if state.current and (state.current.pair.pair_id, state.current.repeat) in answers:
            state.current = None

    def current(self, name: str) -> Asked | None:
        """Return what the annotator is asked now; None when everything is judged."""
        with self._state(name).lock, self._lock:
            state = self._state(name)
            if state.current is None:
                state.current = self._pick(state)
            return state.current

    def vote(self, name: str, token: str, choice: str) -> bool:
        """Keep a vote; it is durable when this returns. False: the showing was answered already, nothing is kept.

        Raises:
            ValueError: the choice is none of ``CHOICES``.
            OSError, UserError: the vote could not be kept; the same pair stays.
        """
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}, found {choice!r:.40}")
        state = self._state(name)
        with state.lock:
            asked = state.current
            if asked is None or not secrets.compare_digest(asked.token.encode(), token.encode("utf-8", "replace")):
                return False
            self._keep(state, asked, choice)
        return True

    def undo(self, name: str) -> bool:
        """Take the newest answer back and ask it again; False if there is none."""
        state = self._state(name)
        with state.lock:
            if not state.answers:
                return False
            last = state.answers[-1]
            asked = self._ask(state.name, self._deck[last.pair_id], last.repeat)
            self._keep(state, asked, UNDO)
            state.current = asked
        return True

    def progress(self, name: str) -> Progress:
        """Return how far the annotator is."""
        with self._lock:
            state = self._state(name)
            return Progress(len(state.answers), len(self._deck) - len(state.repeats().keys() & self._deck.keys()))

    def _state(self, name: str) -> _Annotator:
        with self._lock:
            return self._annotators.setdefault(name, _Annotator(name))

    def _keep(self, state: _Annotator, asked: Asked, choice: str) -> None:
        record = self._record(state, asked, choice)
        names = append(self._store, [record])
        with self._lock:
            self._shards.update(names)
            self._records[judgement_id(record)] = record
            self._settle(state)

    def _record(self, state: _Annotator, asked: Asked, choice: str) -> Judgement:
        # an undo must be later than what it takes back, whatever the clock does
        time = max(self._clock(), state.last_time + timedelta(microseconds=1))
        pair, left, right = asked.pair, asked.left, asked.right
        return Judgement(
            pair_id=pair.pair_id,
            lq_id=pair.lq_id,
            lq_digest=pair.lq_digest,
            digest_a=left.digest,
            digest_b=right.digest,
            model_a=left.model,
            model_b=right.model,
            seed_a=left.seed,
            seed_b=right.seed,
            choice=choice,
            annotator=state.name,
            repeat=asked.repeat,
            source="human",
            instruction=self._question,
            time=time.isoformat().replace("+00:00", "Z"),
            tool_version=__version__,
        )

    def _ask(self, name: str, pair: Pair, repeat: int) -> Asked:
        swapped = seeding.derive("side", name, pair.pair_id, repeat) % 2
        left, right = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        return Asked(pair, repeat, left, right, secrets.token_hex(8))

    def _pick(self, state: _Annotator) -> Asked | None:
        due = self._due_repeat(state)
        if due is not None:
            return self._ask(state.name, due, 1)
        new = self._new_pair(state)
        return None if new is None else self._ask(state.name, new, 0)

    def _due_repeat(self, state: _Annotator) -> Pair | None:
        """Return the oldest pair that may come again, if a repeat is due."""
        if not self._repeat_every or (len(state.answers) + 1) % self._repeat_every:
            return None
        counts = state.repeats()
        old = [answer for answer in state.answers[:-REPEAT_GAP] if counts[answer.pair_id] == 1]
        return self._deck[old[0].pair_id] if old else None

    def _new_pair(self, state: _Annotator) -> Pair | None:
        """Return the next pair: first what two others contradict each other on, then what nobody has judged."""
        answered = state.repeats().keys()
        others = [one for one in self._annotators.values() if one is not state]
        open_elsewhere = {one.current.pair.pair_id for one in others if one.current is not None}
        votes: dict[str, list[str]] = defaultdict(list)
        for one in others:
            for answer in one.answers:
                if answer.repeat == 0:
                    votes[answer.pair_id].append(canonical_choice(answer))
        shared = len(state.answers) % SHARED_EVERY == SHARED_EVERY - 1

        def rank(pair: Pair) -> int:
            found = votes[pair.pair_id]
            if len(found) == 2 and len(set(found)) == 2:
                return 0
            if shared and len(found) == 1:
                return 1
            return 2 if not found and pair.pair_id not in open_elsewhere else 3 + len(found)

        left = (pair for pair in self._deck.values() if pair.pair_id not in answered)
        return min(left, key=rank, default=None)
