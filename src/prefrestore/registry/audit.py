"""The audit log of a model: an append-only chain of decisions that says which version is champion.

Entry N is a file that can be created once, so of two decisions that saw the same state one is refused. Each entry holds
the digest of the one before, so an altered log is found.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry.stores import Store

Action = Literal["promote", "rollback", "reject"]
START = "0" * 64
READERS = 16
"""Entries read at once: a store over a network answers each in its own time."""


@dataclass(frozen=True)
class Decision:
    """Who decided, when (ISO 8601, UTC) and why."""

    who: str
    when: str
    why: str


@dataclass(frozen=True)
class State:
    """Which versions serve: the champion, and what rollback returns to."""

    champion: int | None = None
    previous: int | None = None


@dataclass(frozen=True)
class Entry:
    """One decision and the state after it."""

    number: int
    action: Action
    version: int
    digest: str
    verdict: str
    forced: bool
    decision: Decision
    state: State
    before: str


class Audit:
    """The log in ``STORE/audit/MODEL``, in a folder or in S3."""

    def __init__(self, store: Store, model: str) -> None:
        """Open the log; it need not exist yet."""
        self.store = store
        self.folder = f"audit/{model}"
        self._entries: list[Entry] = []
        self._digest = START

    def entries(self) -> list[Entry]:
        """Return all decisions, oldest first.

        Raises:
            UserError: an entry is missing, altered or unreadable.
        """
        return self._read()[0]

    def state(self) -> State:
        """Return the state after the newest decision."""
        return self.tip()[2]

    def tip(self) -> tuple[int, str, State]:
        """Return number, digest and state that the next entry follows; errors as :meth:`entries`."""
        entries, before = self._read()
        return len(entries), before, entries[-1].state if entries else State()

    def append(self, entry: Entry) -> None:
        """Add a decision, whole or not at all.

        Raises:
            UserError: another decision with this number was faster.
        """
        content = artifacts.canonical_json(asdict(entry)).encode()
        if not self.store.create(f"{self.folder}/{entry.number:06d}.json", content):
            raise UserError(f"{self.folder}: another decision was made meanwhile: look, then decide again")

    def _read(self) -> tuple[list[Entry], str]:
        """Read what is new and check that it follows; what this object has checked before cannot change any more."""
        names = self.store.names(self.folder)
        if len(names) < len(self._entries):
            raise UserError(f"{self.folder}: entries of the audit log were lost: restore it from a copy")
        fresh = names[len(self._entries) :]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self.store.read, fresh))
        for name, content in zip(fresh, contents, strict=True):
            entry = _entry(name, content or b"")
            if entry.number != len(self._entries) + 1 or entry.before != self._digest:
                raise UserError(f"{name}: the audit log was altered here: restore it from a copy")
            self._entries.append(entry)
            self._digest = hashlib.sha256(content or b"").hexdigest()
        return list(self._entries), self._digest


def _entry(name: str, content: bytes) -> Entry:
    try:
        fields = json.loads(content)
        return Entry(
            **{**fields, "decision": Decision(**fields["decision"]), "state": State(**fields["state"])},
        )
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{name}: is no entry of an audit log: restore it from a copy") from None
