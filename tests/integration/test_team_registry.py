"""The registry as teams run it, over the wire: MLflow on PostgreSQL, releases and files in S3."""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from click.testing import CliRunner

from prefrestore import artifacts
from prefrestore.commands import model as commands
from prefrestore.config import FetchChampionConfig, PublishConfig
from prefrestore.errors import UserError
from prefrestore.registry import backends, promotion
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.loader import locate, resolve
from prefrestore.registry.promotion import Desk
from prefrestore.registry.stores import S3Store, open_store
from prefrestore.registry.versions import Registry
from prefrestore.runtime import mlflow_access, storage, uploads
from prefrestore.stage import STAGES, execute
from support.releases import candidate, weights

BUCKET = "releases"
STORE = f"s3://{BUCKET}/team"
DECISION = Decision("tester", "2026-01-01T00:00:00+00:00", "because")
NUMBERS = itertools.count()


@pytest.fixture
def s3(s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 with an empty bucket; parts of uploads are 16 KiB."""
    for name, value in {**s3_environment, "PREFRESTORE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(uploads, "PART_BYTES", 16 << 10)
    storage.forget_client()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_environment["AWS_ENDPOINT_URL"])
    for row in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        client.abort_multipart_upload(Bucket=BUCKET, Key=row["Key"], UploadId=row["UploadId"])
    for row in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=row["Key"])
    client.delete_bucket(Bucket=BUCKET)
    storage.forget_client()


def _parts(root: Path, seed: int) -> dict[str, Path]:
    files = {"base/model.safetensors": weights(seed), "policy/adapter.safetensors": weights(-seed % 1000, 50)}
    for name, content in {**files, "base/config.json": b"{}", "base/empty.txt": b""}.items():
        path = root / f"parts-{seed}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: root / f"parts-{seed}" / name for name in ("base", "policy")}


@pytest.fixture
def team(mlflow_server: str, s3: Any, tmp_path: Path, repository: Path) -> Path:  # noqa: ARG001
    """A folder whose configuration names the team's registry and store, and a model of this test alone."""
    values = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    values["publish"] |= {"registry": mlflow_server, "store": STORE, "model": f"restorer-{next(NUMBERS)}"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return tmp_path


def _section(team: Path) -> PublishConfig:
    return PublishConfig(**yaml.safe_load((team / "params.yaml").read_text(encoding="utf-8"))["publish"])


def _publish(team: Path, seed: int, *, passed: bool = True) -> dict[str, Any]:
    paths = candidate(team, seed, passed=passed)
    execute(STAGES["publish"], _section(team), paths)
    result: dict[str, Any] = artifacts.read_json(paths["release"] / "release.json")
    return result


def _desk(team: Path) -> Desk:
    section = _section(team)
    return Desk(Registry(section.registry), Audit(open_store(section.store), section.model), section.model)


def _call(team: Path, *arguments: str) -> str:
    result = CliRunner().invoke(commands.command, [*arguments, "--config", str(team / "params.yaml")])
    if result.exception:
        raise result.exception
    return result.output


def _aliases(team: Path) -> dict[str, int]:
    """As MLflow's own client sees them."""
    section = _section(team)
    model = mlflow_access.connect(section.registry).get_registered_model(section.model)
    return {alias: int(number) for alias, number in model.aliases.items()}


def test_from_publication_to_rollback(team: Path) -> None:
    first = _publish(team, 1)
    assert first["published"]
    assert _publish(team, 1) == first  # publishing twice is harmless
    assert _aliases(team) == {"challenger": 1}
    assert "champion 1, previous none" in _call(team, "promote", "1", "--why", "first")

    assert not _publish(team, 2, passed=False)["published"]
    assert [version.number for version in _desk(team).registry.versions(_section(team).model)] == [1]
    second = _publish(team, 3)
    assert _aliases(team) == {"champion": 1, "challenger": 2}
    assert "champion 2, previous 1" in _call(team, "promote", "2", "--why", "sharper", "--expect", "1")
    assert "champion 1, previous 2" in _call(team, "rollback", "--why", "complaints")
    assert _aliases(team) == {"champion": 1, "previous": 2}
    assert [line.split()[3] for line in _call(team, "log").splitlines()] == ["promote", "promote", "rollback"]
    assert "PSNR [dB]" in _call(team, "diff", "1", "2")
    assert "licence: other" in _call(team, "show", "2")

    model = _section(team).model
    pulled = Path(_call(team, "pull", f"models:/{model}@champion").strip())
    assert pulled.name == first["digest"]
    elsewhere = team / "here"
    _call(team, "pull", f"{STORE}/{second['digest']}", "--out", str(elsewhere))
    assert artifacts.digest(elsewhere / "policy") == artifacts.digest(team / "candidate-3" / "policy")
    pin = FetchChampionConfig(registry=_section(team).registry, model=model, version=2, digest=second["digest"])
    execute(STAGES["fetch_champion"], pin, {"champion": team / "champion"})
    assert artifacts.digest(team / "champion" / "release" / "base") == artifacts.digest(team / "candidate-3" / "base")


def test_evidence_of_pass_and_failure_lies_in_mlflow(team: Path, s3: Any) -> None:
    _publish(team, 1)
    _publish(team, 2, passed=False)
    section = _section(team)
    client = mlflow_access.connect(section.registry)
    experiment = client.get_experiment_by_name(section.model).experiment_id
    runs = client.search_runs([experiment])
    assert sorted(run.data.tags["gate.passed"] for run in runs) == ["false", "true"]
    assert sorted(run.data.metrics["psnr"] for run in runs) == [21.0, 22.0]
    (version,) = client.search_model_versions(f"name = '{section.model}'")
    assert version.source.startswith(f"{STORE}/")
    assert client.get_run(version.run_id).data.tags["gate.passed"] == "true"
    keys = [row["Key"] for row in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    for run in runs:
        assert any(run.info.run_id in key and key.endswith("verdict/verdict.json") for key in keys)
        assert any(run.info.run_id in key and key.endswith("README.md") for key in keys)


@pytest.mark.parametrize("kind", ["server", "file"])
def test_what_we_read_and_write_is_what_mlflow_reads(kind: str, team: Path, empty_registry: bytes) -> None:
    """Decisions go around MLflow's own client; both must see the same."""
    (team / "mlflow.db").write_bytes(empty_registry)
    uri = _section(team).registry if kind == "server" else f"sqlite:///{team / 'mlflow.db'}"
    client, ours, name = mlflow_access.connect(uri), backends.open_backend(uri), f"model-{next(NUMBERS)}"
    assert (ours.rows(name), ours.aliases(name)) == ([], {})
    client.create_registered_model(name)
    for number in (1, 2, 3):
        client.create_model_version(name, f"s3://b/{number}", tags={"key": f"{number}", "größe": "ä'\""})
    client.delete_model_version(name, "2")
    theirs = backends.Client(uri)
    assert sorted(ours.rows(name), key=lambda row: row.number) == sorted(theirs.rows(name), key=lambda row: row.number)
    for alias, number in (("champion", 1), ("champion", 3), ("previous", 1), ("champion", None), ("champion", None)):
        ours.point(name, alias, number)
        told = {key: int(value) for key, value in client.get_registered_model(name).aliases.items()}
        assert ours.aliases(name) == theirs.aliases(name) == told
    theirs.point(name, "previous", None)
    assert ours.aliases(name) == {}


def test_of_two_promotions_at_once_one_wins_a_hundred_times(team: Path) -> None:
    for seed in (1, 2, 3):
        _publish(team, seed)
    desks = {number: _desk(team) for number in (1, 2, 3)}
    promotion.promote(desks[3], 3, DECISION)
    champions = [3]
    for _ in range(100):
        champion = champions[-1]
        outcomes = _race({number: desk for number, desk in desks.items() if number != champion}, champion)
        winners = [number for number, error in outcomes.items() if error is None]
        assert len(winners) == 1, outcomes
        assert "meanwhile" in str(next(error for error in outcomes.values() if error is not None))
        champions += winners
    entries = _desk(team).audit.entries()  # read anew: the chain holds
    assert [entry.version for entry in entries] == champions
    promotion.settle(desks[1])
    assert _aliases(team)["champion"] == champions[-1]
    assert _aliases(team)["previous"] == champions[-2]


def _race(desks: dict[int, Desk], champion: int) -> dict[int, UserError | None]:
    barrier = threading.Barrier(len(desks))
    outcomes: dict[int, UserError | None] = {}

    def run(number: int, desk: Desk) -> None:
        barrier.wait()
        try:
            promotion.promote(desk, number, DECISION, expected=champion)
            outcomes[number] = None
        except UserError as error:
            outcomes[number] = error

    racers = [threading.Thread(target=run, args=item) for item in desks.items()]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return outcomes


class Wire:
    """A proxy before S3 that may cut for good after some bytes sent to it, or flip one of them on the way."""

    def __init__(self, target: str, *, cut_after: int | None = None, flip: bytes = b"") -> None:
        self._target = target.removeprefix("http://").split(":")
        self._left, self._flip = cut_after, flip
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), closing(socket.create_connection((self._target[0], int(self._target[1])))) as upstream:
            answers = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
            answers.start()
            with suppress(OSError):
                while data := client.recv(4096):
                    self.sent += len(data)
                    if self._left is not None:
                        self._left -= len(data)
                        if self._left < 0:
                            return
                    if self._flip and self._flip in data:
                        data = data.replace(self._flip, bytes([self._flip[0] ^ 1]) + self._flip[1:])
                    upstream.sendall(data)
                answers.join()

    def close(self) -> None:
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


Through = Callable[..., Wire]


@pytest.fixture
def through(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Lead this process's S3 client through a wire."""
    opened: list[Wire] = []

    def lead(**faults: Any) -> Wire:
        wire = Wire(s3_server, **faults)
        opened.append(wire)
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        storage.forget_client()
        return wire

    yield lead
    for wire in opened:
        wire.close()


def test_an_upload_cut_anywhere_shows_nothing_and_is_taken_up_again(
    s3: Any, s3_server: str, through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty cuts at random places."""
    whole = through()
    S3Store(f"s3://{BUCKET}/measured").put(_parts(tmp_path, 0))
    total, dice = whole.sent, random.Random(0)
    resent = []
    for seed in range(1, 21):
        store = S3Store(f"s3://{BUCKET}/cut-{seed}")
        through(cut_after=dice.randrange(total // 20, total * 19 // 20))
        with pytest.raises(UserError, match="S3"):
            store.put(_parts(tmp_path, seed))
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
        storage.forget_client()
        shown = [row["Key"] for row in s3.list_objects_v2(Bucket=BUCKET, Prefix=f"cut-{seed}/").get("Contents", [])]
        assert not [key for key in shown if key.endswith("manifest.json")]
        again = through()
        digest, address = store.put(_parts(tmp_path, seed))
        resent.append(again.sent)
        assert address == f"s3://{BUCKET}/cut-{seed}/{digest}"
        folder = store.pull(digest, tmp_path / f"pulled-{seed}")
        assert artifacts.digest(folder / "base") == artifacts.digest(tmp_path / f"parts-{seed}" / "base")
    assert min(resent) < total / 2  # what had arrived was not sent again
    assert s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


@pytest.mark.parametrize("size", [1_000, 30_000])
def test_a_byte_flipped_on_the_way_up_is_found(size: int, s3: Any, through: Through, tmp_path: Path) -> None:
    """In one piece and in parts."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights(1, size))
    body = path.read_bytes()
    through(flip=body[-16:])
    digest = hashlib.sha256(body).hexdigest()
    with pytest.raises(UserError, match=r"received other bytes|S3 answered"):
        uploads.upload(path, f"s3://{BUCKET}/w.safetensors", digest)
    assert s3.list_objects_v2(Bucket=BUCKET).get("Contents", []) == []


@pytest.mark.parametrize("name", ["base/model.safetensors", "base/config.json", "manifest.json"])
def test_a_flipped_byte_in_a_release_is_refused(name: str, s3: Any, tmp_path: Path) -> None:
    store = S3Store(STORE)
    digest, address = store.put(_parts(tmp_path, 1))
    key = f"team/{digest}/{name}"
    body = bytearray(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    body[-1] ^= 1
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
    with pytest.raises(UserError, match=r"changed after release|is damaged"):
        locate(resolve(address, ""))
    assert not (tmp_path / "cache" / "releases" / digest).exists()


def test_a_damaged_copy_in_the_cache_is_fetched_anew(s3: Any, tmp_path: Path) -> None:  # noqa: ARG001
    store = S3Store(STORE)
    digest, _ = store.put(_parts(tmp_path, 1))
    folder = store.fetch(digest)
    (folder / "base" / "config.json").write_text("{ }")
    assert (store.fetch(digest) / "base" / "config.json").read_text() == "{}"


def test_a_release_by_somebody_else_with_a_pickle_is_refused(s3: Any, tmp_path: Path) -> None:  # noqa: ARG001
    for name, content in (("base/model.pkl", b"\x80\x04."), ("base/model.safetensors", b"\x80\x04N.")):
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "format": "safetensors"}
        manifest = artifacts.canonical_json({"format_version": 2, "files": {name: entry}}).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        for key, body in ((name, content), ("manifest.json", manifest)):
            s3.put_object(Bucket=BUCKET, Key=f"team/{digest}/{key}", Body=body)
        with pytest.raises(UserError, match=r"no file of a release|whatever its name says"):
            locate(resolve(f"{STORE}/{digest}", ""))
        assert not (tmp_path / "cache" / "releases" / digest).exists()


def test_a_complete_release_is_never_written_again(s3: Any, tmp_path: Path) -> None:
    digest, _ = S3Store(STORE).put(_parts(tmp_path, 1))
    before = {row["Key"]: row["LastModified"] for row in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert S3Store(STORE).put(_parts(tmp_path, 1))[0] == digest
    assert {row["Key"]: row["LastModified"] for row in s3.list_objects_v2(Bucket=BUCKET)["Contents"]} == before
    s3.delete_object(Bucket=BUCKET, Key=f"team/{digest}/base/config.json")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        S3Store(STORE).check(digest)


def test_a_lost_entry_of_the_log_is_noticed(team: Path, s3: Any) -> None:
    _publish(team, 1)
    _publish(team, 2)
    for number in (1, 2):
        _call(team, "promote", str(number), "--why", "x")
    s3.delete_object(Bucket=BUCKET, Key=f"team/audit/{_section(team).model}/000001.json")
    with pytest.raises(UserError, match="audit log was altered"):
        _call(team, "rollback", "--why", "x")


class Careless(BaseHTTPRequestHandler):
    """An S3 that creates a thing as often as it is asked to."""

    def do_PUT(self) -> None:  # noqa: N802 - http.server's name
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


class Forbidding(Careless):
    """An S3 whose bucket may be read, not written."""

    def do_PUT(self) -> None:  # noqa: N802 - http.server's name
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        body = b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:  # noqa: N802 - http.server's name
        self.send_response(404)
        self.end_headers()


@pytest.mark.parametrize(
    ("handler", "words"), [(Careless, "no conditional writes"), (Forbidding, "S3 refuses these credentials")]
)
@pytest.mark.usefixtures("s3")
def test_stores_that_cannot_be_trusted_are_refused(
    handler: type[BaseHTTPRequestHandler], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    storage.forget_client()
    with pytest.raises(UserError, match=words):
        S3Store(STORE).create("audit/m/000001.json", b"{}")
    if handler is Forbidding:
        with pytest.raises(UserError, match=words):
            S3Store(STORE).put(_parts(tmp_path, 1))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://releases/team/nothing", "is no release: write"),
        (f"s3://releases/team/{'0' * 64}", "no complete release is there"),
        (f"s3://no-such-bucket/{'0' * 64}", "no such bucket"),
        ("models:/restorer", "is no registry address"),
        ("models:/restorer@champion", "no version of restorer is called champion"),
        ("models:/restorer/7", "has no version 7"),
    ],
)
def test_addresses_of_nothing_are_told(address: str, words: str, team: Path) -> None:
    with pytest.raises(UserError, match=words):
        locate(resolve(address, _section(team).registry))
    assert not list((team / "cache").rglob("*.json"))
