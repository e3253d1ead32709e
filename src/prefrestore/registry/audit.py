"""The audit log of a model: an append-only chain of decisions that says which version is champion.

Entry N is a file that can be created once, so of two decisions that saw the same state one is refused. Each entry holds
the digest of the one before, so an altered log is found.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from prefrestore import artifacts
from prefrestore.errors import UserError

Action = Literal["promote", "rollback", "reject"]
START = "0" * 64


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
    """The log in ``STORE/audit/MODEL``."""

    def __init__(self, store: Path, model: str) -> None:
        """Open the log; it need not exist yet."""
        self.folder = store / "audit" / model

    def entries(self) -> list[Entry]:
        """Return all decisions, oldest first.

        Raises:
            UserError: an entry is missing, altered or unreadable.
        """
        found: list[Entry] = []
        before = START
        for number, path in enumerate(sorted(self.folder.glob("[0-9]*.json")), 1):
            entry = _read(path)
            if entry.number != number or entry.before != before:
                raise UserError(f"{path}: the audit log was altered here: restore it from a copy")
            found.append(entry)
            before = artifacts.file_digest(path)
        return found

    def state(self) -> State:
        """Return the state after the newest decision."""
        entries = self.entries()
        return entries[-1].state if entries else State()

    def append(self, entry: Entry) -> None:
        """Add a decision, whole or not at all.

        Raises:
            UserError: another decision with this number was faster.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._path(entry.number)
        temporary = self.folder / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(artifacts.canonical_json(asdict(entry)))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link fails if the name exists, on every file system, and the file is complete when it appears.
            target.hardlink_to(temporary)
        except FileExistsError:
            raise UserError(
                f"{target.parent.name}: another decision was made meanwhile: look, then decide again"
            ) from None
        finally:
            temporary.unlink()

    def tip(self) -> tuple[int, str, State]:
        """Return number, digest and state that the next entry follows."""
        entries = self.entries()
        if not entries:
            return 0, START, State()
        return entries[-1].number, artifacts.file_digest(self._path(entries[-1].number)), entries[-1].state

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def _read(path: Path) -> Entry:
    try:
        fields = artifacts.read_json(path)
        return Entry(
            **{**fields, "decision": Decision(**fields["decision"]), "state": State(**fields["state"])},
        )
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: is no entry of an audit log: restore it from a copy") from None
