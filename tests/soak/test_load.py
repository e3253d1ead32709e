"""Fifty people at once: no vote is lost, no answer belongs to another, memory stays, and too many are turned away."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from prefrestore.data.preferences import CHOICES
from prefrestore.data.vote_store import read
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.runtime import seeding
from support import served, voters
from support.soak import awaited, scaled
from support.voters import BusyError, Voter, memory_mib, percentiles

pytestmark = pytest.mark.xdist_group("services")

Tell = Callable[[str], None]
USERS = 50
SECONDS = scaled(4.0, 120.0)
THINKS = scaled(0.2, 0.5)
"""Seconds that an annotator looks at a pair, on average."""
FACES = 10
MORE_MIB = 150.0
# uvicorn closes connections that were idle for five seconds; a client must not send into one that is closing
CLIENT = {"timeout": httpx.Timeout(120), "limits": httpx.Limits(max_connections=4 * USERS, keepalive_expiry=2)}


@dataclass
class Seen:
    """What one annotator saw and pressed, in order."""

    answers: list[tuple[str, str, str]] = field(default_factory=list)  # left, right, choice
    seconds: list[float] = field(default_factory=list)
    busy: int = 0


async def _annotate(voter: Voter, seen: Seen, end: float) -> None:
    draw = seeding.rng("load", voter.name)
    await voter.enter()
    while (time.monotonic() < end or not seen.answers) and voter.token:  # a slow machine takes long to let all in
        await asyncio.sleep(float(draw.exponential(THINKS)))
        choice, shown, started = str(draw.choice(CHOICES)), voter.shown, time.perf_counter()
        try:
            await voter.vote(choice)
        except BusyError:
            seen.busy += 1
            continue
        seen.seconds.append(time.perf_counter() - started)
        seen.answers.append((*shown, choice))  # type: ignore[arg-type]
        assert voter.done == len(seen.answers), voter.name
        assert voter.shown != shown


async def _crowd(url: str, process: int) -> tuple[dict[str, Seen], list[float]]:
    """Let everybody annotate, and note the server's memory before, in the middle and after."""
    async with httpx.AsyncClient(base_url=url, **CLIENT) as client:  # type: ignore[arg-type]
        known = await voters.actions(client)
        people = {f"user{number}": Seen() for number in range(USERS)}
        end = time.monotonic() + SECONDS
        work = [asyncio.create_task(_annotate(Voter(client, known, name), seen, end)) for name, seen in people.items()]
        memory = []
        for _ in range(2):
            await asyncio.sleep(SECONDS / 2)
            memory.append(memory_mib(process))
        await asyncio.gather(*work)
        return people, [*memory, memory_mib(process)]


def test_fifty_annotators(candidates: Path, tmp_path: Path, tell: Tell) -> None:
    store = tmp_path / "votes"
    with voters.studio("--candidates", candidates, "--votes", store, log=tmp_path / "log") as studio:
        people, memory = awaited(_crowd(studio.url, studio.process.pid))
    votes = read(store)
    lost = mixed = 0
    for name, seen in people.items():
        kept = sorted((row for row in votes.judgements if row.annotator == name), key=lambda row: row.time)
        found = [(row.digest_a, row.digest_b, row.choice) for row in kept]
        lost += max(0, len(seen.answers) - len(found))
        mixed += sum(one != other for one, other in zip(found, seen.answers, strict=False))
    seconds = [value for seen in people.values() for value in seen.seconds]
    tell(
        f"load studio: {USERS} annotators, {SECONDS:.0f} s, {len(seconds)} votes ({percentiles(seconds)}), "
        f"{lost} lost, {mixed} mixed up, {sum(seen.busy for seen in people.values())} turned away, "
        f"memory {memory[0]:.0f} MiB in the middle, {memory[-1]:.0f} at the end"
    )
    assert len(seconds) >= USERS
    assert (lost, mixed, len(votes.judgements)) == (0, 0, len(seconds))
    assert votes.rejected == ()
    assert memory[-1] - memory[0] < MORE_MIB
    assert "Traceback" not in (tmp_path / "log").read_text()


async def _press_and_leave(url: str, presses: int) -> None:
    async with httpx.AsyncClient(base_url=url, **CLIENT) as client:  # type: ignore[arg-type]
        known = await voters.actions(client)

        async def press(number: int) -> None:
            body = {"data": ["nobody"], "fn_index": known.enter, "session_hash": f"gone{number}", "event_data": None}
            while (await client.post(f"{voters.API}/queue/join", json=body)).status_code == 503:
                await asyncio.sleep(0.2)

        for first in range(0, presses, USERS):
            await asyncio.gather(*(press(number) for number in range(first, first + USERS)))
        voter = Voter(client, known, f"reader{presses}")
        await voter.enter()
        await voter.vote(CHOICES[0])
        assert voter.done == 1


def test_who_presses_and_goes_away_fills_no_memory(candidates: Path, tmp_path: Path, tell: Tell) -> None:
    presses = scaled(600, 20_000)
    with voters.studio("--candidates", candidates, "--votes", tmp_path / "votes", log=tmp_path / "log") as studio:
        awaited(_press_and_leave(studio.url, presses // 2))
        middle = memory_mib(studio.process.pid)
        awaited(_press_and_leave(studio.url, presses))
        end = memory_mib(studio.process.pid)
    tell(f"unread: {presses * 3 // 2} presses whose answers nobody read, memory {middle:.0f} MiB, {end:.0f} at the end")
    assert end - middle < MORE_MIB / 3
    assert "Traceback" not in (tmp_path / "log").read_text()


@dataclass
class Asked:
    """What the predictor answered."""

    seconds: list[float] = field(default_factory=list)
    busy: int = 0
    wrong: int = 0


async def _ask(client: httpx.AsyncClient, user: int, expected: list[np.ndarray], asked: Asked, end: float) -> None:
    draw, answered = seeding.rng("load", "predictor", user), False
    while time.monotonic() < end or not answered:  # a slow machine takes long to answer the first
        face, name, started = int(draw.integers(FACES)), f"{user}-{len(asked.seconds)}", time.perf_counter()
        body = served.request(served.png(seed=face), served.tensor("seed", face, "INT64"), id=name)
        reply = await client.post(f"/v2/models/{served.MODEL}/infer", content=body)
        if reply.status_code == 503:
            asked.busy += 1
            assert reply.headers["retry-after"]
            await asyncio.sleep(float(draw.exponential(0.2)))
            continue
        answered = True
        asked.seconds.append(time.perf_counter() - started)
        asked.wrong += not _is(reply.json(), name, expected[face])


def _is(answer: dict[str, Any], name: str, expected: np.ndarray) -> bool:
    found = Image.open(io.BytesIO(base64.b64decode(answer["outputs"][0]["data"][0])))
    return answer["id"] == name and np.array_equal(np.asarray(found), expected)


async def _callers(url: str, process: int, expected: list[np.ndarray]) -> tuple[Asked, list[float]]:
    asked = Asked()
    async with httpx.AsyncClient(base_url=url, **CLIENT) as client:  # type: ignore[arg-type]
        end = time.monotonic() + SECONDS
        work = [asyncio.create_task(_ask(client, user, expected, asked, end)) for user in range(USERS)]
        await asyncio.sleep(SECONDS / 2)
        memory = [memory_mib(process)]
        await asyncio.gather(*work)
    return asked, [*memory, memory_mib(process)]


def _expected(root: Path) -> list[np.ndarray]:
    """Return what the library makes of each face, at the predictor's one thread."""
    pipeline = load(locate(resolve(f"models:/{served.MODEL}/1", served.registry_at(root))))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pictures = (Image.open(io.BytesIO(served.png(seed=face))) for face in range(FACES))
        return [np.asarray(pipeline(picture, "", face).images[0]) for face, picture in enumerate(pictures)]
    finally:
        torch.set_num_threads(before)


def test_fifty_callers(served_root: Path, tell: Tell) -> None:
    expected = _expected(served_root)
    with served.predictor(served_root, "--max-waiting", "32") as server:
        asked, memory = awaited(_callers(server.url, server.process.pid, expected))
        waiting = server.metrics()[("prefrestore_waiting",)]
    tell(
        f"load predictor: {USERS} callers, {SECONDS:.0f} s, {len(asked.seconds)} answers "
        f"({percentiles(asked.seconds)}), {asked.wrong} wrong or mixed up, {asked.busy} turned away with 503, memory "
        f"{memory[0]:.0f} MiB in the middle, {memory[-1]:.0f} at the end"
    )
    assert len(asked.seconds) >= USERS
    assert asked.busy > 0
    assert (asked.wrong, waiting) == (0, 0)
    assert memory[-1] - memory[0] < MORE_MIB
    assert not [line for line in server.said if "Traceback" in line]
