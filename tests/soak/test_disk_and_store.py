"""A full disk, a place that cannot be written, an S3 that is busy, cuts or lists what was: one line, nothing half-made,
and the same command completes when the fault has ended."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch

from prefrestore import artifacts, configfile
from prefrestore.data.images import encode_png
from prefrestore.data.vote_store import append, read
from prefrestore.errors import UserError
from prefrestore.registry.stores import FolderStore, S3Store
from prefrestore.runtime import storage
from prefrestore.runtime.checkpoint import Checkpoint, Checkpoints
from support import releases
from support.votes import vote

BUCKET = "faults"
BUSY = b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
Program = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system in memory; needs root."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("no rights to mount a file system: run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    with mounted(tmp_path / "small", "size=256k") as folder:
        yield folder


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no space, and give it back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 4096):
                pass
        except OSError:
            pass  # full
    yield
    ballast.unlink()


def _one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("prefrestore: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert all(word in errors[0] for word in words), errors


def _degrade(program: Program, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return program("degrade", source, target, "--recipe", "pref_restore", cwd=source.parent)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six pictures of noise, which no format makes small."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
    return folder


def test_a_full_disk(small: Path, photographs: Path, program: Program) -> None:
    with filled(small):
        _one_line(_degrade(program, photographs, small / "out"), "small")
    assert [path for path in small.rglob("*") if path.is_file()] == []
    done = _degrade(program, photographs, small / "out")
    assert done.returncode == 0, done.stderr


def test_a_disk_that_becomes_full_half_way(small: Path) -> None:
    """Votes, releases and checkpoints that were there stay; what found no space is not there at all."""
    store, checkpoints = small / "votes", small / "checkpoints"
    append(store, [vote(1)])
    section = configfile.load(Path(__file__).parents[2] / "presets" / "smoke.yaml").align
    saved = Checkpoints("align", section, {}, checkpoints)
    saved.save(Checkpoint(1, {"x": torch.zeros(1000)}, {}))
    with filled(small):
        with pytest.raises(OSError, match="No space left"):
            append(store, [vote(2)])
        with pytest.raises(Exception, match="[Nn]o space left|os error 28"):
            saved.save(Checkpoint(2, {"x": torch.zeros(10_000)}, {}))
        latest = saved.latest()
        assert latest is not None
        assert latest.step == 1
    assert [row.digest_a for row in read(store).judgements] == [vote(1).digest_a]
    assert not [path for path in small.rglob("*") if path.name.endswith(".tmp")]
    append(store, [vote(2)])
    saved.save(Checkpoint(2, {"x": torch.zeros(10_000)}, {}))
    assert len(read(store).judgements) == 2


def test_a_release_that_finds_no_space(small: Path, tmp_path: Path) -> None:
    parts = {name: path for name, path in releases.candidate(tmp_path, 1, passed=True).items() if name != "release"}
    store = FolderStore(small / "releases")
    with filled(small), pytest.raises(OSError, match="No space left"):
        store.put(parts)
    assert not [path for path in small.rglob("*") if path.is_file()]
    digest, _ = store.put(parts)
    store.check(digest)


def test_a_place_that_cannot_be_written(photographs: Path, tmp_path: Path, program: Program) -> None:
    with mounted(tmp_path / "fixed", "size=256k") as folder:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        _one_line(_degrade(program, photographs, folder / "out"), "fixed", "Read-only")
        with pytest.raises(OSError, match="Read-only"):
            append(folder / "votes", [vote(1)])


class Faults:
    """An S3 that, on demand, says 503, cuts bodies, or gives the listing of an earlier moment."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._moto = DomainDispatcherApplication(create_backend_app)
        self.left, self.used, self.kind = 0, 0, ""
        self._listings: dict[str, bytes] = {}
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
        listing = method == "GET" and "list-type=2" in query
        fault = self.next(method, listing=listing)
        if fault == "503":
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        told: list[Any] = []
        body = b"".join(self._moto(environ, lambda *answer: told.extend(answer[:2])))
        if listing:
            body = self._listings.get(query, body) if fault else self._remember(query, body)
        status, headers = told
        if listing:
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers)
        return [body[: len(body) // 2] if fault == "cut" else body]

    def _remember(self, query: str, body: bytes) -> bytes:
        self._listings[query] = body
        return body

    def next(self, method: str, *, listing: bool) -> str:
        """Return the fault that this request meets."""
        meets = {"503": True, "cut": method == "GET" and not listing, "stale": listing}.get(self.kind, False)
        if not meets or self.left <= 0:
            return ""
        self.left, self.used = self.left - 1, self.used + 1
        return self.kind

    def begin(self, kind: str, count: int = 10**9) -> None:
        """From now on ``count`` requests meet a fault."""
        self.kind, self.left, self.used = kind, count, 0


@pytest.fixture
def faults(
    s3_server: str, s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Faults]:
    """It has the content of ``s3_server``, which stays sound."""
    proxy = Faults()
    for name, value in {**s3_environment, "PREFRESTORE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    storage.forget_client()
    yield proxy
    proxy.server.shutdown()
    bucket: Any = boto3.resource("s3", endpoint_url=s3_server).Bucket(BUCKET)
    bucket.objects.all().delete()
    bucket.delete()
    storage.forget_client()


def _parts(tmp_path: Path) -> dict[str, Path]:
    return {name: path for name, path in releases.candidate(tmp_path, 1, passed=True).items() if name != "release"}


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_an_s3_with_faults_and_after_them(kind: str, faults: Faults, tmp_path: Path) -> None:
    votes, store = f"s3://{BUCKET}/votes", S3Store(f"s3://{BUCKET}/releases")
    append(votes, [vote(1)])
    digest, _ = store.put(_parts(tmp_path))
    faults.begin(kind)
    for action in (lambda: read(votes), lambda: store.fetch(digest)):
        with pytest.raises(UserError) as caught:
            action()
        assert "\n" not in str(caught.value)
    assert faults.used > 0
    assert not (tmp_path / "cache" / "releases" / digest).exists()
    faults.begin(kind, 2)
    assert len(read(votes).judgements) == 1
    assert artifacts.file_digest(store.fetch(digest) / artifacts.MANIFEST) == digest
    assert faults.left == 0


def test_a_busy_s3_takes_nothing_or_all(faults: Faults, tmp_path: Path) -> None:
    votes, store = f"s3://{BUCKET}/votes", S3Store(f"s3://{BUCKET}/releases")
    faults.begin("503")
    for action in (lambda: append(votes, [vote(1)]), lambda: store.put(_parts(tmp_path))):
        with pytest.raises(UserError, match="SlowDown"):
            action()
    faults.begin("")
    assert read(votes).judgements == ()
    assert storage.find_objects(f"s3://{BUCKET}/releases/") == []
    append(votes, [vote(1)])
    assert len(read(votes).judgements) == 1


def test_a_stale_listing_shows_votes_later_and_never_twice(faults: Faults) -> None:
    """What a listing does not show yet is no loss: the watermark does not pass it."""
    votes = f"s3://{BUCKET}/votes"
    append(votes, [vote(1)])
    first = read(votes)
    append(votes, [vote(2)])
    faults.begin("stale")
    assert read(votes, first.shards).judgements == ()
    append(votes, [vote(2)])
    faults.begin("")
    later = read(votes, first.shards)
    assert [row.digest_a for row in later.judgements] == [vote(2).digest_a]
    assert len(read(votes).judgements) == 2
