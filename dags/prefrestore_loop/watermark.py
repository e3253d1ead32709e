"""When new judgements start an alignment. Pure: state and count in, decision out; times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

DAY = 86400.0


@dataclass(frozen=True)
class Limits:
    """Guards of the loop; see :class:`prefrestore_loop.settings.Settings`."""

    minimum: int
    max_wait: float
    cooldown: float
    per_day: int


@dataclass(frozen=True)
class Watermark:
    """What was already done.

    Attributes:
        judgements: valid ones in the store when the last alignment was started.
        fired: times of the alignments of the last day, and the last one at all.
        since: when the first newer judgement was seen; None: there is none.
    """

    judgements: int = 0
    fired: tuple[float, ...] = ()
    since: float | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> Watermark:
        """Return what :meth:`plain` gave; None is the beginning."""
        if not values:
            return cls()
        return cls(int(values["judgements"]), tuple(values["fired"]), values["since"])

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "fired": list(self.fired)}


def decide(before: Watermark, valid: int, now: float, limits: Limits) -> tuple[Watermark, bool]:
    """Return the next watermark and whether an alignment starts.

    It counts valid judgements and not files, so that shards which arrive twice, are compacted or are malformed start
    nothing. Judgements that were taken back lower the count.

    Args:
        before: the watermark.
        valid: valid judgements in the store.
        now: the time.
        limits: the guards.
    """
    new = valid - before.judgements
    if new <= 0:
        return replace(before, since=None), False
    since = now if before.since is None else before.since
    due = new >= limits.minimum or now - since >= limits.max_wait
    if not due or _held(before, now, limits):
        return replace(before, since=since), False
    recent = [time for time in before.fired if now - time < DAY]
    return Watermark(valid, (*recent, now), None), True


def _held(before: Watermark, now: float, limits: Limits) -> bool:
    """Say whether cooldown or the day's cap forbid a start."""
    if before.fired and now - before.fired[-1] < limits.cooldown:
        return True
    return sum(now - time < DAY for time in before.fired) >= limits.per_day
