"""The predictor as a process: answers, hostile bodies, limits, and a promotion while it is under load."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from prefrestore import artifacts, configfile
from prefrestore.commands.serve import command
from prefrestore.config import LoraConfig
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.models.adapters import add_roles, role_tensors, save_policy
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.registry import promotion
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.stores import FolderStore
from prefrestore.registry.versions import Evidence, Registry
from prefrestore.serving.protocol import BadRequestError, read_request
from prefrestore.sft.pretrain import build_pipeline

MODEL = "restorer"
SIZE = 32
DECISION = Decision("tester", "2026-01-01T00:00:00+00:00", "because")
MAX_BODY = 200_000
MAX_PIXELS = 100 * 100


def _save_base(folder: Path, repository: Path) -> None:
    """An untrained restorer at smoke's sizes."""
    config = configfile.load(repository / "presets" / "smoke.yaml")
    pictures = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    codec = build_codec(config.train_codec)
    start_linear(codec, torch.from_numpy(pictures).movedim(-1, 1).float() / 255)
    pairs = PairSet(tuple("abcdefgh"), ("",) * 8, pictures, pictures[:, None], (), np.zeros((8, 68, 2), np.float32))
    build_pipeline(config.pretrain, codec, build_tokenizer(config.train_codec.tokenizer), pairs).save_pretrained(folder)


def _save_policy(folder: Path, base: Path, seed: int) -> None:
    """Adapters that say something, so that versions answer differently."""
    from prefrestore.models.pipeline import PrefRestorePipeline

    pipeline = PrefRestorePipeline.from_pretrained(base)
    lora = LoraConfig(rank=4, alpha=64)
    add_roles(pipeline, lora, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator) for name, value in role_tensors(pipeline, "policy").items()
    }
    folder.mkdir()
    save_policy(folder, tensors, lora, artifacts.digest(base))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, empty_registry: bytes, repository: Path) -> Path:
    """A registry with two versions of a model, the first of them champion."""
    root = tmp_path_factory.mktemp("served")
    (root / "mlflow.db").write_bytes(empty_registry)
    torch.manual_seed(0)
    _save_base(root / "base", repository)
    desk = _desk(root)
    (root / "verdict").mkdir()
    (root / "verdict" / "verdict.json").write_text('{"passed": true}')
    for number in (1, 2):
        _save_policy(root / f"policy-{number}", root / "base", number)
        parts = {"base": root / "base", "policy": root / f"policy-{number}", "verdict": root / "verdict"}
        digest, source = FolderStore(root / "releases").put(parts)
        desk.registry.register(MODEL, Evidence(digest, {}, {}), source)
    promotion.promote(desk, 1, DECISION)
    return root


def _desk(root: Path) -> promotion.Desk:
    return promotion.Desk(Registry(_uri(root)), Audit(FolderStore(root / "releases"), MODEL), MODEL)


def _uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


@dataclass(frozen=True)
class Server:
    """A predictor process and where it answers."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> tuple[int, Any]:
        return self.send(path, None)

    def send(self, path: str, body: bytes | None) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def infer(self, body: bytes) -> tuple[int, Any]:
        return self.send(f"/v2/models/{MODEL}/infer", body)

    def metrics(self) -> dict[tuple[str, ...], float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return {(row.name, *row.labels.values()): row.value for family in families for row in family.samples}


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    arguments = [f"models:/{MODEL}@champion", "--registry", _uri(root), "--port", "0", "--refresh", "0.5"]
    arguments += ["--max-body", str(MAX_BODY), "--max-pixels", str(MAX_PIXELS), "--max-waiting", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prefrestore", "serve", *arguments], cwd=root, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        raise RuntimeError("the predictor did not start")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield Server(found[0], process)
    process.kill()
    process.wait()


def png(size: tuple[int, int] = (40, 40), seed: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tensor(name: str, value: Any, datatype: str = "BYTES", shape: Any = (1,)) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": [value]}


def request(image: bytes, *more: dict[str, Any], **fields: Any) -> bytes:
    inputs = [tensor("image", base64.b64encode(image).decode()), *more]
    return json.dumps({"inputs": inputs, **fields}).encode()


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
    pipeline = load(locate(resolve(f"models:/{MODEL}/1", _uri(root))))
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
    promotion.promote(_desk(root), 2, DECISION)
    _wait_for_version(server, "2")
    promotion.rollback(_desk(root), DECISION)
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

    version = _desk(root).registry.get(MODEL, 2)
    path = root / "releases" / version.digest / "policy" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = ("prefrestore_exchanges_total", "failed")
    promotion.promote(_desk(root), 2, DECISION, force=True)
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
    done = program("serve", address, "--registry", _uri(root), "--port", "0", cwd=tmp_path)
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
