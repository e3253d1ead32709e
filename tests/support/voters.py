"""``prefrestore studio`` as a process, and people at it, without browsers: what the page's script sends."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from support.net import free_port

API = "/gradio_api"
PICTURE = re.compile(r'class="restored".*?base64,([A-Za-z0-9+/=]+)"', re.DOTALL)
TOKEN, DONE = re.compile(r'data-token="([0-9a-f]+)"'), re.compile(r'data-done="(\d+)"')
OPENED = re.compile(r"open (http://\S+)")
START_SECONDS = 400.0


@dataclass(frozen=True)
class Studio:
    """A running studio."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def studio(*arguments: str | Path, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Studio]:
    """Run ``prefrestore studio`` on a free port."""
    command = [sys.executable, "-m", "prefrestore", "studio", "--port", str(free_port()), *map(str, arguments)]
    with (
        log.open("w") as stream,
        subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **(environment or {})}) as process,
    ):
        try:
            yield Studio(_address(process, log), process, log)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := OPENED.search(log.read_text()):
            return found[1].rstrip("/")
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@dataclass(frozen=True)
class Actions:
    """Numbers of the page's functions: entering, each vote, undo; and how many inputs each has."""

    enter: int
    votes: Mapping[str, int]
    undo: int


async def actions(client: httpx.AsyncClient) -> Actions:
    """Read from the page's own description which function each button calls."""
    config = (await client.get("/config")).json()
    names = {row["id"]: row["props"].get("elem_id") for row in config["components"]}
    called = {names.get(target[0]): row["id"] for row in config["dependencies"] for target in row["targets"]}
    votes = {name.removeprefix("vote-"): number for name, number in called.items() if name and name.startswith("vote-")}
    return Actions(called["start"], votes, called["undo"])


class BusyError(Exception):
    """The studio has turned the press away."""


class Voter:
    """One person's page: the token of what is shown, digests of its two pictures, left first, and answers given."""

    def __init__(self, client: httpx.AsyncClient, known: Actions, name: str) -> None:
        self._client, self._known, self.name = client, known, name
        self._session = uuid.uuid4().hex[:11]
        self.token, self.done, self.shown = "", 0, tuple[str, ...]()

    async def enter(self) -> None:
        """Give the pseudonym."""
        self._show(await self.call(self._known.enter, [self.name]))

    async def vote(self, choice: str) -> str:
        """Answer what is shown, and return the token of that showing."""
        token = self.token
        self._show(await self.call(self._known.votes[choice], [None, token]))
        return token

    def _show(self, data: list[Any]) -> None:
        text = json.dumps(data).replace('\\"', '"')
        found = TOKEN.search(text)
        self.token = found[1] if found else ""
        self.shown = tuple(hashlib.sha256(base64.b64decode(one)).hexdigest() for one in PICTURE.findall(text))
        self.done = int(DONE.search(text)[1])  # type: ignore[index]

    async def call(self, function: int, data: list[Any]) -> list[Any]:
        """Call a function of the page and return what it gives.

        Raises:
            BusyError: too many wait.
            ValueError: the page says that something is wrong.
        """
        body = {"data": data, "fn_index": function, "session_hash": self._session, "event_data": None}
        joined = await self._client.post(f"{API}/queue/join", json=body)
        if joined.status_code == 503:
            raise BusyError
        joined.raise_for_status()
        wanted = joined.json()["event_id"]
        async with self._client.stream("GET", f"{API}/queue/data", params={"session_hash": self._session}) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed" and message.get("event_id") == wanted:
                    if not message["success"]:
                        raise ValueError(str(message["output"].get("error"))[:200])
                    return list(message["output"]["data"])
        raise ConnectionError("the stream ended without an answer")


def memory_mib(process: int) -> float:
    """Return the memory that a process has in use."""
    return psutil.Process(process).memory_info().rss / 2**20


def percentiles(seconds: list[float]) -> str:
    """Return the middle and the tail of latencies, as a line."""
    rows = sorted(seconds)
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    middle = (f"{name} {rows[min(len(rows) - 1, int(share * len(rows)))]:.2f} s" for name, share in named.items())
    return ", ".join([*middle, f"most {rows[-1]:.2f} s"])
