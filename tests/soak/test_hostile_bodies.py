"""Hostile bodies and paths sent to predictor and studio: a status and a line, nothing kept or given away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from prefrestore.data.vote_store import read
from support import served, voters
from support.hostile import NAMES, cases, damaged, twisted
from support.served import Server
from support.soak import awaited, scaled
from support.voters import API, Studio, Voter, memory_mib

pytestmark = pytest.mark.xdist_group("services")

Tell = Callable[[str], None]
MORE_MIB = 300.0
JSON = {"content-type": "application/json"}
REFUSED = {400, 404, 405, 408, 413, 415, 422}


@pytest.fixture(scope="module")
def server(served_root: Path) -> Iterator[Server]:
    with served.predictor(served_root, "--max-body", "200000", "--max-pixels", "10000") as server:
        yield server


def _bodies(name: str, count: int, sound: bytes) -> Iterator[bytes]:
    """Yield bodies that are damaged as bytes, or as JSON."""
    for number, generator in enumerate(cases(name, count)):
        if number % 2:
            yield damaged(sound, generator)
        else:
            yield json.dumps(twisted(json.loads(sound), generator)).encode()


def test_bodies_of_the_predictor(server: Server, tell: Tell) -> None:
    sound = served.request(served.png(), served.tensor("seed", 3, "INT64"), served.tensor("text", "a face"), id="x")
    right, before = server.infer(sound), memory_mib(server.process.pid)
    found: dict[int, int] = {}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for body in _bodies("predictor", scaled(60, 1500), sound):
            reply = client.post(f"/v2/models/{served.MODEL}/infer", content=body)
            found[reply.status_code] = found.get(reply.status_code, 0) + 1
            assert reply.status_code in {200, *REFUSED}, body[:300]
            if reply.status_code != 200:
                assert list(reply.json()) == ["error"]
                assert "\n" not in reply.json()["error"]
        for path in NAMES:
            reply = client.get(f"/v2/models/{quote(path, safe='', errors='replace')}")
            assert reply.status_code in REFUSED
            assert "root:" not in reply.text
    assert server.infer(sound) == right
    more = memory_mib(server.process.pid) - before
    tell(f"hostile bodies of the predictor: {sum(found.values())} cases, by status {found}, {more:.0f} MiB more")
    assert more < MORE_MIB
    assert not [line for line in server.said if "Traceback" in line]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "votes"


@pytest.fixture(scope="module")
def studio(candidates: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    environment = {"GRADIO_TEMP_DIR": str(folder / "gradio")}
    options = ("--candidates", candidates, "--votes", store)
    with voters.studio(*options, log=folder / "log", environment=environment) as studio:
        yield studio


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=/etc/passwd", f"{API}/file={{candidates}}/candidates.parquet", f"{API}/file=../../../etc/passwd",
        f"{API}/file=file:///etc/passwd", f"{API}/proxy=http://127.0.0.1:1/", "/static/../../../../etc/passwd",
        f"{API}/run-history/records", "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", f"{API}/stream/a/b/c/d.ts",
        "/svelte/..%2f..%2f..%2fetc/passwd", f"{API}/file={{store}}", "/monitoring",
    ],
)  # fmt: skip
def test_paths_of_the_studio_give_nothing_away(path: str, studio: Studio, candidates: Path, store: Path) -> None:
    reply = httpx.get(studio.url + path.format(candidates=candidates, store=store), timeout=60)
    assert reply.status_code in {403, *REFUSED}, reply.text[:200]
    assert "root:" not in reply.text
    assert "PAR1" not in reply.text


def test_nothing_is_uploaded_to_the_studio(studio: Studio) -> None:
    reply = httpx.post(f"{studio.url}{API}/upload", files={"files": ("../../x.html", b"<script>")}, timeout=60)
    assert reply.status_code == 404
    assert list((studio.log.parent / "gradio").rglob("*.html")) == []
    large = {"data": ["x" * 100_000], "fn_index": 0, "session_hash": "a"}
    assert httpx.post(f"{studio.url}{API}/queue/join", json=large, timeout=60).status_code == 413


@pytest.mark.parametrize(
    "change",
    [
        {"session_hash": ""}, {"session_hash": None}, {"session_hash": "x" * 65}, {"session_hash": "\ud800"},
        {"data": []}, {"data": ["a", "b"]}, {"data": "a"}, {"data": ["\ud800"]}, {"data": [float("nan")]},
        {"fn_index": 99}, {"fn_index": -1}, {"fn_index": True}, {"fn_index": "0"}, {"fn_index": None},
    ],
)  # fmt: skip
def test_what_is_no_press_goes_no_further(change: dict[str, Any], studio: Studio) -> None:
    press = {"data": ["a"], "fn_index": 0, "session_hash": "a", "event_data": None} | change
    reply = httpx.post(f"{studio.url}{API}/queue/join", content=json.dumps(press).encode(), headers=JSON, timeout=60)
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    assert "Traceback" not in studio.log.read_text()


@pytest.mark.parametrize("name", ["", "a", "\0", "?", *(name for name in NAMES if name != "\ud800")])
def test_a_stream_of_nobody_ends_and_is_told_in_a_line(name: str, studio: Studio) -> None:
    before = studio.log.read_text()
    reply = httpx.get(f"{studio.url}{API}/queue/data", params={"session_hash": name}, timeout=60)
    assert '"session_not_found":true' in reply.text
    with httpx.stream("GET", f"{studio.url}{API}/heartbeat/{quote(name, safe='')}", timeout=60) as beat:
        assert beat.status_code in {200, *REFUSED}
    lines = studio.log.read_text().removeprefix(before).splitlines()
    assert lines[0] == "broke off GET '/gradio_api/queue/data': HTTPException(status_code=404, detail='Not Found')"
    assert [line for line in lines[1:] if not line.startswith("broke off GET '/gradio_api/heartbeat/")] == []


async def _attack(url: str, count: int) -> tuple[dict[int, int], int]:
    """Send damaged presses, then vote as an honest annotator; return statuses and the honest one's votes."""
    found: dict[int, int] = {}
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        known = await voters.actions(client)
        honest = Voter(client, known, "honest")
        await honest.enter()
        presses = [(known.enter, ["../x"]), (known.votes["a"], [None, "0" * 16]), (known.undo, [None])]
        for number in range(count):
            function, data = presses[number % 3]
            press = {"data": data, "fn_index": function, "session_hash": f"s{number % 7}", "event_data": None}
            body = next(_bodies(f"studio-{number}", 1, json.dumps(press).encode()))
            for path in ("queue/join", "run/predict", "cancel", "reset"):
                reply = await client.post(f"{API}/{path}", content=body, headers=JSON)
                found[reply.status_code] = found.get(reply.status_code, 0) + 1
                assert reply.status_code in {200, 503, *REFUSED}, body
                assert "Traceback" not in reply.text
        for choice in ("a", "b", "tie"):
            await honest.vote(choice)
        with pytest.raises(ValueError, match="pseudonym"):
            await Voter(client, known, "../../x").enter()
        stranger = Voter(client, known, "stranger")
        with pytest.raises(ValueError, match="no longer known"):
            await stranger.call(known.votes["a"], [None, "0" * 16])
        for token in ("é", None, 7, [], {"a": 1}):  # an answered showing, or none: nothing is kept
            await honest.call(known.votes["a"], [None, token])
        return found, honest.done


def test_bodies_of_the_studio(studio: Studio, store: Path, tell: Tell) -> None:
    before = memory_mib(studio.process.pid)
    found, done = awaited(_attack(studio.url, scaled(20, 400)))
    more = memory_mib(studio.process.pid) - before
    log = studio.log.read_text()
    tell(
        f"hostile bodies of the studio: {sum(found.values())} cases, by status {dict(sorted(found.items()))}, "
        f"{log.count('Traceback')} tracebacks, {more:.0f} MiB more"
    )
    assert "Traceback" not in log
    votes: list[Any] = [row for row in read(store).judgements if row.annotator == "honest"]
    assert (len(votes), done) == (3, 3)
    assert {row.annotator for row in read(store).judgements} == {"honest"}
    assert more < MORE_MIB
