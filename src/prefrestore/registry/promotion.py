"""Promotion, rollback and rejection: compare-and-set on the audit log, then aliases that follow it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from prefrestore.errors import UserError
from prefrestore.registry.audit import Action, Audit, Decision, Entry, State
from prefrestore.registry.stores import verified_member
from prefrestore.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Registry, Version

VERDICT = "verdict/verdict.json"


@dataclass(frozen=True)
class Desk:
    """Where decisions about one model are made."""

    registry: Registry
    audit: Audit
    model: str


def promote(desk: Desk, number: int, decision: Decision, *, expected: int | None = None, force: bool = False) -> State:
    """Make a version the champion; the champion until now becomes ``previous``.

    Args:
        desk: registry and audit log.
        number: the version.
        decision: who, when, why.
        expected: the champion that the decision was made against; another one is an error. None: any.
        force: promote without a passed gate; the audit log says so.

    Raises:
        UserError: the version is champion already, has no passed gate or a damaged release, or another decision came
            first.
    """
    tip = desk.audit.tip()
    state = tip[2]
    version = desk.registry.get(desk.model, number)
    if expected is not None and state.champion != expected:
        found = state.champion or "none"
        raise UserError(f"{desk.model}: champion is version {found}, not {expected}: it was promoted meanwhile")
    if state.champion == number:
        raise UserError(f"{desk.model}: version {number} is champion already")
    if not force:
        check_gate(version)
    _decide(desk, tip, "promote", version, decision, State(number, state.champion), forced=force)
    if CHALLENGER in version.aliases:
        desk.registry.set_alias(desk.model, CHALLENGER, None)
    return settle(desk)


def rollback(desk: Desk, decision: Decision) -> State:
    """Exchange champion and previous.

    Raises:
        UserError: there is no previous version, its release is damaged, or another decision came first.
    """
    tip = desk.audit.tip()
    state = tip[2]
    if state.previous is None:
        raise UserError(f"{desk.model}: there is no previous version to go back to")
    version = desk.registry.get(desk.model, state.previous)
    version.store.check(version.digest)
    _decide(desk, tip, "rollback", version, decision, State(state.previous, state.champion))
    return settle(desk)


def reject(desk: Desk, number: int, decision: Decision) -> State:
    """Record that a version is not wanted; it is challenger no more.

    Raises:
        UserError: it is the champion, or another decision came first.
    """
    tip = desk.audit.tip()
    version = desk.registry.get(desk.model, number)
    if tip[2].champion == number:
        raise UserError(f"{desk.model}: version {number} is champion: roll back first")
    _decide(desk, tip, "reject", version, decision, tip[2])
    if CHALLENGER in version.aliases:
        desk.registry.set_alias(desk.model, CHALLENGER, None)
    return settle(desk)


def challenge(desk: Desk, version: Version) -> None:
    """Let a version be the challenger, unless it was decided about before or a newer one is there."""
    decided = {entry.version for entry in desk.audit.entries()}
    newest = desk.registry.versions(desk.model)[-1].number
    if version.number not in decided and version.number == newest:
        desk.registry.set_alias(desk.model, CHALLENGER, version.number)


def settle(desk: Desk) -> State:
    """Bring the registry's aliases in line with the audit log and return the state.

    A slower process may write an older state over a newer one; so each looks again after it has written.
    """
    state = desk.audit.state()
    while True:
        desk.registry.set_alias(desk.model, CHAMPION, state.champion)
        desk.registry.set_alias(desk.model, PREVIOUS, state.previous)
        newest = desk.audit.state()
        if newest == state:
            return state
        state = newest


def check_gate(version: Version) -> None:
    """Check that the version's release is whole and that its own verdict says passed.

    Raises:
        UserError: says which does not hold.
    """
    version.store.check(version.digest)
    verdict = verified_member(version.store, version.digest, VERDICT)
    if verdict is None:
        raise UserError(f"{version.name} has no verdict: evaluate it, or decide with --force")
    if json.loads(verdict).get("passed") is not True:
        raise UserError(f"{version.name} did not pass its gate: decide with --force if it must be")


def _decide(  # noqa: PLR0913  one field of the entry each
    desk: Desk,
    tip: tuple[int, str, State],
    action: Action,
    version: Version,
    decision: Decision,
    state: State,
    *,
    forced: bool = False,
) -> None:
    verdict = version.tags.get("gate.digest", "")
    number, before, _ = tip
    desk.audit.append(
        Entry(number + 1, action, version.number, version.digest, verdict, forced, decision, state, before)
    )
