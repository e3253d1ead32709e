"""The predictor as a process: answers, hostile bodies, limits, and a promotion while it is under load."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from prefrestore.commands.serve import command
from prefrestore.errors import UserError
from prefrestore.registry import promotion
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.serving.protocol import BadRequestError, read_request
from support import served
from support.served import (
    DECISION,
    MODEL,
    Server,
    desk,
    png,
    registry_at,
    request,
    tensor,
)

MAX_BODY = 200_000
MAX_PIXELS = 100 * 100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, empty_registry: bytes, repository: Path) -> Path:
    return served.fill_registry(tmp_path_factory.mktemp("served"), repository, empty_registry)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    limits = ["--max-body", str(MAX_BODY), "--max-pixels", str(MAX_PIXELS), "--max-waiting", "4"]
    with served.predictor(root, "--refresh", "0.5", *limits) as server:
        yield server


def test_the_protocol(server: Server) -> None:
    assert server.get("/v2")[1]["name"] == "prefrestore"
    assert server.get("/v2/health/live") == (200, {"live": True})
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    status, described = server.get(f"/v2/models/{MODEL}")
    assert (status, described["name"], described["versions"]) == (200, MODEL, ["1"])
    assert [row["name"] for row in described["inputs"]] == ["image", "text", "seed"]
    assert server.get(f"/v2/models/{MODEL}/versions/1/ready")[0] == 200
    for path in ("/v2/models/other", f"/v2/models/{MODEL}/versions/9", "/nowhere", "/docs"):
        status, answer = server.get(path)
        assert (status, list(answer)) == (404, ["error"])


def test_answers_are_those_of_the_library_and_repeat(server: Server, root: Path) -> None:
    """Also while others ask."""
    bodies = [request(png(seed=seed), tensor("seed", seed, "INT64"), id=f"r{seed}") for seed in range(3)]
    alone = [server.infer(body) for body in bodies]
    assert [(status, answer["id"]) for status, answer in alone] == [(200, "r0"), (200, "r1"), (200, "r2")]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda at=at: together.update({at: server.infer(bodies[at])})) for at in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[at] for at in range(3)] == alone
    pipeline = load(locate(resolve(f"models:/{MODEL}/1", registry_at(root))))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed, (_, answer) in enumerate(alone):
        expected = pipeline(Image.open(io.BytesIO(png(seed=seed))), "", seed).images[0]
        found = Image.open(io.BytesIO(base64.b64decode(answer["outputs"][0]["data"][0])))
        assert found.format == "PNG"
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    torch.set_num_threads(threads_before)
    assert alone[0][1]["outputs"][0]["data"] != alone[1][1]["outputs"][0]["data"]


def test_words_and_seed_are_taken(server: Server) -> None:
    plain = server.infer(request(png()))
    seeded = server.infer(request(png(), tensor("seed", 7, "INT64"), tensor("text", "a smiling man")))
    assert plain[0] == seeded[0] == 200
    assert plain[1]["outputs"] != seeded[1]["outputs"]


HOSTILE: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no JSON": (b"\x80\x04N.", 400),
    "deep": (b"[" * 100_000, 400),
    "deep inside": (b'{"inputs":' + b"[" * 90_000 + b"]" * 90_000 + b"}", 400),
    "list": (b"[]", 400),
    "no inputs": (b'{"inputs": []}', 400),
    "no image": (json.dumps({"inputs": [tensor("text", "x")]}).encode(), 400),
    "twice": (request(png(), tensor("image", "")), 400),
    "unknown input": (request(png(), tensor("path", "/etc/passwd")), 400),
    "not base64": (json.dumps({"inputs": [tensor("image", "?!")]}).encode(), 400),
    "lone surrogate": (b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["\\ud800"]}]}', 400),
    "number as image": (json.dumps({"inputs": [tensor("image", 5)]}).encode(), 400),
    "shape": (json.dumps({"inputs": [tensor("image", "", shape=[2])]}).encode(), 400),
    "huge shape": (json.dumps({"inputs": [tensor("image", "", shape=[10**30])]}).encode(), 400),
    "negative seed": (request(png(), tensor("seed", -1, "INT64")), 400),
    "huge seed": (request(png(), tensor("seed", 2**70, "INT64")), 400),
    "seed as words": (request(png(), tensor("seed", "1", "INT64")), 400),
    "long text": (request(png(), tensor("text", "x" * 3000)), 400),
    "not a picture": (request(b"hello, I am a text"), 422),
    "cut picture": (request(png()[:200]), 422),
    "not square": (request(png((40, 60))), 422),
    "too many pixels": (request(png((101, 101))), 422),
    "tiny": (request(png((4, 4))), 422),
    "bomb": (
        request(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x86\xa0\x00\x01\x86\xa0\x08\x02\x00\x00\x00" + bytes(40)),
        422,
    ),
    "too large": (b"x" * (MAX_BODY + 1), 413),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_bodies_are_answered_in_a_line(name: str, server: Server) -> None:
    body, expected = HOSTILE[name]
    status, answer = server.infer(body)
    assert (status, list(answer)) == (expected, ["error"]), answer
    assert len(answer["error"]) < 400
    assert "\n" not in answer["error"]
    assert server.infer(request(png()))[0] == 200


def test_an_endless_body_is_cut_off(server: Server) -> None:
    """Chunks without an announced length."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.sendall(head.encode())
        try:
            for _ in range(100):
                wire.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            pass  # it has hung up, as it should
        else:
            assert wire.recv(100).startswith(b"HTTP/1.1 413")
    assert server.get("/v2/health/live")[0] == 200


def test_too_many_at_once_are_turned_away(server: Server) -> None:
    outcomes: list[int] = []
    threads = [threading.Thread(target=lambda: outcomes.append(server.infer(request(png()))[0])) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {200, 503}
    assert outcomes.count(200) >= 4
    assert server.infer(request(png()))[0] == 200


def test_metrics_count_requests(server: Server) -> None:
    before = server.metrics()
    assert server.infer(request(png()))[0] == 200
    assert server.infer(b"{}")[0] == 400
    after = server.metrics()
    for status in ("200", "400"):
        key = ("prefrestore_requests_total", status)
        assert after[key] - before.get(key, 0.0) == 1
    assert after[("prefrestore_waiting",)] == 0
    assert after[("prefrestore_model", "1")] == 1


def test_a_promotion_drops_no_request(server: Server, root: Path) -> None:
    """Two callers ask all the time while the alias moves forth and back; then a damaged release is promoted."""
    answers: list[tuple[int, Any]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(server.infer(request(png(), id=str(len(answers)))))

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    promotion.promote(desk(root), 2, DECISION)
    _wait_for_version(server, "2")
    promotion.rollback(desk(root), DECISION)
    _wait_for_version(server, "1")
    ended.set()
    for caller in callers:
        caller.join()
    assert {status for status, _ in answers} == {200}
    by_version = {answer["model_version"]: answer["outputs"][0]["data"] for _, answer in answers}
    assert set(by_version) == {"1", "2"}
    assert by_version["1"] != by_version["2"]
    for _, answer in answers:
        assert answer["outputs"][0]["data"] == by_version[answer["model_version"]]

    version = desk(root).registry.get(MODEL, 2)
    path = root / "releases" / version.digest / "policy" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = ("prefrestore_exchanges_total", "failed")
    promotion.promote(desk(root), 2, DECISION, force=True)
    _wait(lambda: server.metrics().get(failed, 0.0) > 0)
    assert server.infer(request(png()))[1]["model_version"] == "1"  # the old one goes on
    path.write_bytes(content)
    _wait_for_version(server, "2")


def _wait_for_version(server: Server, version: str) -> None:
    _wait(lambda: server.get(f"/v2/models/{MODEL}")[1]["versions"] == [version])


def _wait(ready: Any) -> None:
    end = time.monotonic() + 180
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_it_answers_what_it_has_begun_before_it_ends(server: Server) -> None:
    """The last test of this process."""
    outcomes: list[int] = []
    threads = [threading.Thread(target=lambda: outcomes.append(server.infer(request(png()))[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    _wait(lambda: server.metrics()[("prefrestore_waiting",)] > 0)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert server.process.wait(120) in (0, -signal.SIGTERM)
    assert 200 in outcomes


@pytest.mark.parametrize(
    ("address", "words"), [(f"models:/{MODEL}@nobody", "is called nobody"), ("nowhere", "is no folder")]
)
def test_an_address_of_nothing_is_told_at_once(
    address: str, words: str, root: Path, program: Any, tmp_path: Path
) -> None:
    done = program("serve", address, "--registry", registry_at(root), "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_folders_that_hold_no_model_are_told(tmp_path: Path) -> None:
    for name in ("base", "policy"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is no saved pipeline"):
        load(locate(resolve(str(tmp_path), "")))
    (tmp_path / "policy").rmdir()
    with pytest.raises(UserError, match="has no folder policy"):
        locate(resolve(str(tmp_path), ""))


def test_adapter_and_base_of_different_releases_do_not_mix(root: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").symlink_to(root / "policy-1")
    (tmp_path / "base").mkdir()
    for path in (root / "base").iterdir():
        (tmp_path / "base" / path.name).symlink_to(path)
    (tmp_path / "base" / "note.txt").write_text("another base")
    with pytest.raises(UserError, match="trained on another base"):
        load(locate(resolve(str(tmp_path), "")))


def test_the_manifest_starts_what_the_program_offers(repository: Path) -> None:
    """KServe's manifest names options, paths and ports that exist."""
    text = (repository / "deploy" / "kserve" / "inferenceservice.yaml").read_text(encoding="utf-8")
    container = yaml.safe_load(text)["spec"]["predictor"]["containers"][0]
    assert container["command"] == ["prefrestore"]
    assert container["args"][0] == "serve"
    context = command.make_context("serve", list(container["args"][1:]))
    assert context.params["host"] == "0.0.0.0"  # in a pod; elsewhere loopback
    assert next(option for option in command.params if option.name == "host").default == "127.0.0.1"
    assert container["ports"][0]["containerPort"] == context.params["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path, port = container[probe]["httpGet"].values()
        assert port == context.params["port"]
        assert path in {"/v2/health/ready", "/v2/health/live", f"/v2/models/{context.params['name']}/ready"}


@pytest.mark.parametrize("body", [b'{"inputs": [{"name": "image"}]}', b"null", b'{"inputs": {"a": 1}}', b'"' * 9])
def test_reading_says_where(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        read_request(body)
