"""The event trigger that watches a vote store."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from prefrestore_loop import alerts
from prefrestore_loop.program import accepted, program_async
from prefrestore_loop.watermark import Limits, Watermark, decide

KEY = "watermark"
HANDED_OVER = 5.0
"""Seconds after which an event is surely in the database; the triggerer hands events over every second."""
LONGEST_PAUSE = 3600.0
SCHEME = "s3://"


class StoreError(AirflowException):
    """The vote store cannot be listed."""


class PreferenceStoreTrigger(BaseEventTrigger):
    """Gives an event when enough new valid judgements are in a store; guards and watermark as in ``watermark.decide``.

    Looking is a listing; only when it changed the program counts. An event is handed over before the watermark moves,
    so a triggerer that dies may give an event twice but loses none; its ``watermark`` names the work, and the run that
    it starts is looked up by that name.
    """

    def __init__(  # noqa: PLR0913  one argument per setting
        self, store: str, minimum: int, max_wait: float, cooldown: float, per_day: int, poll: float
    ) -> None:
        """Set store, guards (seconds) and the pause between two looks (seconds)."""
        super().__init__()
        self.store, self.poll = store, poll
        self.limits = Limits(minimum, max_wait, cooldown, per_day)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class and arguments."""
        arguments = {"store": self.store, **vars(self.limits), "poll": self.poll}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever."""
        seen, figures, failures, told = "", {}, 0, ""
        while True:
            try:
                listing = await asyncio.to_thread(digest_of_listing, self.store)
                if listing != seen:
                    figures, seen = await self._counted(), listing
                failures, told = 0, ""
            except AirflowException as error:
                # one line and one alert per fault, and ever longer pauses: the store may be back later
                failures += 1
                if str(error) != told:
                    told = str(error)
                    await alerts.tell_async(f"preferences: {told}")
                await asyncio.sleep(min(LONGEST_PAUSE, self.poll * 2**failures))
                continue
            before = await self._watermark()
            after, fire = decide(before, figures["valid"], time.time(), self.limits)
            if fire:
                yield TriggerEvent(event_of(before, figures, seen))
                await asyncio.sleep(HANDED_OVER)
            if after != before:
                await self._keep(after)
            await asyncio.sleep(self.poll)

    async def _counted(self) -> dict[str, Any]:
        arguments = ("prefs", "stats", self.store, "--json")
        program = await program_async()
        figures = accepted(await program.ask_async(*arguments), arguments)
        self.log.info("%s: %d valid of %d judgements", self.store, figures["valid"], figures["judgements"])
        return figures

    async def _watermark(self) -> Watermark:
        found = await self.asset_state_store.aget(KEY) if self.asset_state_store else None
        return Watermark.parse(found)

    async def _keep(self, watermark: Watermark) -> None:
        if self.asset_state_store:
            await self.asset_state_store.aset(KEY, watermark.plain())


def event_of(before: Watermark, figures: dict[str, Any], listing: str) -> dict[str, Any]:
    """Return what the event says: the version of the preferences, how many are new, and what was set aside."""
    return {
        "watermark": listing,
        "valid": figures["valid"],
        "new": figures["valid"] - before.judgements,
        "shards": figures["shards"],
        "set_aside": [row["name"] for row in figures["set_aside"]][:20],
    }


def digest_of_listing(store: str) -> str:
    """Return a name for the set of files in a store; files never change there, so their names are enough.

    Raises:
        StoreError: it cannot be listed.
    """
    names = _objects(store) if store.startswith(SCHEME) else _files(Path(store))
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise StoreError(f"{folder}: is no folder: mend PREFRESTORE_LOOP_STORE, or make it")
    try:
        paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror})") from None
    return [path.as_posix() for path in paths if not path.name.startswith(".")]


def _objects(address: str) -> list[str]:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix(SCHEME).strip("/").partition("/")
    timing = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
    try:
        # a session of its own: the default one is not safe in threads
        client = boto3.session.Session().client("s3", config=timing)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        return [row["Key"] for page in pages for row in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"{address}: S3 cannot be listed ({error})") from None
