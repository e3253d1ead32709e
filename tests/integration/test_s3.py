"""S3 over the wire: ingest from it, faults on the way, and DVC's push and pull of a data version."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest

from prefrestore import artifacts, configfile
from prefrestore.data.images import encode_png
from prefrestore.data.pairs import load_faces
from prefrestore.data.preferences import Judgement, pair_id
from prefrestore.data.vote_store import append, compact, read
from prefrestore.errors import UserError
from prefrestore.runtime import storage
from prefrestore.stage import STAGES, execute

BUCKET = "faces"


@pytest.fixture
def s3(s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {**s3_environment, "PREFRESTORE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    storage.forget_client()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for row in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=row["Key"])
    client.delete_bucket(Bucket=BUCKET)
    storage.forget_client()


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def ingest(repository: Path, output: Path, uri: str, **changes: Any) -> Path:
    base = configfile.load(repository / "presets" / "smoke.yaml").ingest
    section = {"source": "s3", "uri": uri, "aligned": True, "num_train": 0, "num_eval": 0, "workers": 1, **changes}
    execute(STAGES["ingest"], base.model_copy(update=section), {"faces": output})
    return output


def test_images_and_captions_come_from_a_prefix(repository: Path, s3: Any, tmp_path: Path) -> None:
    for number in range(6):
        split = "val" if number < 2 else "train"
        s3.put_object(Bucket=BUCKET, Key=f"set/{split}/{number}.png", Body=png(number))
    s3.put_object(Bucket=BUCKET, Key="set/train/3.txt", Body=b"a face")
    s3.put_object(Bucket=BUCKET, Key="set/train/bad.png", Body=b"no image")
    folder = ingest(repository, tmp_path / "faces", f"s3://{BUCKET}/set/")
    assert load_faces(folder, "train").captions == ("", "a face", "", "")
    assert load_faces(folder, "eval").ids == ("val-0", "val-1")
    assert pd.read_parquet(folder / "rejected.parquet")["name"].tolist() == ["train/bad.png"]
    assert list((tmp_path / "cache").iterdir()) == []


def test_shards_come_one_at_a_time(repository: Path, s3: Any, tmp_path: Path) -> None:
    for shard in range(2):
        rows = pd.DataFrame({"image": [png(10 * shard + row) for row in range(8)], "text": [f"face {shard}"] * 8})
        s3.put_object(Bucket=BUCKET, Key=f"set/part-{shard}.parquet", Body=rows.to_parquet())
    folder = ingest(repository, tmp_path / "faces", f"s3://{BUCKET}/set", split="hash", eval_share=0.3)
    captions = load_faces(folder, "train").captions + load_faces(folder, "eval").captions
    assert sorted(captions) == ["face 0"] * 8 + ["face 1"] * 8
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3://nowhere/x", "no such bucket"), (f"s3://{BUCKET}/empty/", "no object has this prefix")],
)
def test_what_is_not_there_is_told(repository: Path, s3: Any, tmp_path: Path, uri: str, message: str) -> None:  # noqa: ARG001
    with pytest.raises(UserError, match=message):
        ingest(repository, tmp_path / "faces", uri)
    assert not (tmp_path / "faces").exists()


class Refusing(BaseHTTPRequestHandler):
    """S3 that knows nobody."""

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def test_wrong_or_missing_credentials_and_no_server_are_one_line(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    refusing = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing.server_port}")
    storage.forget_client()
    with pytest.raises(UserError, match=r"refuses these credentials \(InvalidAccessKeyId\)"):
        storage.list_objects(f"s3://{BUCKET}/x")
    refusing.shutdown()
    refusing.server_close()
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    storage.forget_client()
    with pytest.raises(UserError, match="S3 cannot be reached"):
        storage.list_objects(f"s3://{BUCKET}/x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.forget_client()
    with pytest.raises(UserError, match="no S3 credentials"):
        storage.list_objects(f"s3://{BUCKET}/x")


class Cutting:
    """A proxy before S3 that cuts its first answers to object requests after some bytes, and counts what it passes."""

    def __init__(self, target: str, cuts: int, after: int) -> None:
        self._target = target.removeprefix("http://").split(":")
        self.cuts, self.after = cuts, after
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), closing(socket.create_connection((self._target[0], int(self._target[1])))) as upstream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(65536)
            cut = request.startswith(b"GET /") and b"Range:" in request and self.cuts > 0
            self.cuts -= cut
            head, _, rest = request.partition(b"\r\n")
            upstream.sendall(head + b"\r\nConnection: close\r\n" + rest)
            sent = 0
            while data := upstream.recv(65536):
                data = data[: self.after - sent] if cut else data
                client.sendall(data)
                sent += len(data)
                self.passed += len(data)
                if cut and sent == self.after:
                    return

    def close(self) -> None:
        self._listener.close()


def test_a_cut_download_goes_on_where_it_stopped(
    s3: Any, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = np.random.default_rng(0).bytes(3_000_000)
    s3.put_object(Bucket=BUCKET, Key="big.tar", Body=body)
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    proxy = Cutting(s3_server, cuts=4, after=700_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage.forget_client()
    remote = storage.list_objects(f"s3://{BUCKET}/big")[0]
    path = storage.download(remote)
    assert path.read_bytes() == body
    assert proxy.passed < 1.05 * len(body)  # nothing came twice
    path.unlink()

    proxy.cuts = 1000
    proxy.after = 100_000
    with pytest.raises(UserError, match=r"was cut 7 times, last at byte \d+ of 3000000.*goes on from there"):
        storage.download(remote)
    partial = next((tmp_path / "cache").glob("*.part"))
    done = partial.stat().st_size
    assert 0 < done < len(body)
    proxy.cuts = proxy.passed = 0
    path = storage.download(remote)
    assert path.read_bytes() == body
    assert proxy.passed < 1.05 * (len(body) - done)
    proxy.close()


def test_a_cut_ingest_leaves_nothing_and_goes_on(
    repository: Path, s3: Any, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png(number) for number in range(40)]
    shard = pd.DataFrame({"image": images, "license": ["CC0-1.0"] * len(images)}).to_parquet()
    s3.put_object(Bucket=BUCKET, Key="set/part.parquet", Body=shard)
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    proxy = Cutting(s3_server, cuts=1000, after=len(shard) // 12)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage.forget_client()
    how = {"split": "hash", "eval_share": 0.3}
    with pytest.raises(UserError, match=r"set/part.parquet: the connection was cut 7 times.*goes on from there"):
        ingest(repository, tmp_path / "faces", f"s3://{BUCKET}/set", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    proxy.cuts = proxy.passed = 0
    folder = ingest(repository, tmp_path / "faces", f"s3://{BUCKET}/set", **how)
    assert proxy.passed < 0.7 * len(shard)
    table = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("faces-*.parquet")))
    assert len(table) == len(images)
    assert set(table["licence"]) == {"CC0-1.0"}
    assert list((tmp_path / "cache").iterdir()) == []
    proxy.close()


def test_what_arrives_is_what_was_promised(s3: Any, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"other").hexdigest()
    s3.put_object(Bucket=BUCKET, Key="a.tar", Body=b"content", Metadata={"sha256": digest})
    remote = storage.list_objects(f"s3://{BUCKET}/a")[0]
    with pytest.raises(UserError, match="S3 promised"):
        storage.download(remote)
    assert list((tmp_path / "cache").iterdir()) == []
    s3.put_object(Bucket=BUCKET, Key="a.tar", Body=b"changed meanwhile")
    with pytest.raises(UserError, match="changed while it was read"):
        storage.download(remote)
    s3.put_object(Bucket=BUCKET, Key="empty.tar", Body=b"")
    assert storage.download(storage.list_objects(f"s3://{BUCKET}/empty")[0]).read_bytes() == b""


def test_dvc_pushes_and_pulls_a_data_version(repository: Path, s3: Any, s3_server: str, tmp_path: Path) -> None:  # noqa: ARG001
    """A machine pushes two versions; another, which has only the pointer files, pulls either."""
    here, there, source = (tmp_path / name for name in ("here", "there", "source"))

    def dvc(folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    for project in (here, there):
        project.mkdir()
        dvc(project, "init", "--no-scm")
    dvc(here, "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    dvc(here, "remote", "modify", "store", "endpointurl", s3_server)
    shutil.copy(here / ".dvc" / "config", there / ".dvc" / "config")
    versions = []
    for count in (6, 8):
        for number in range(count):
            path = source / ("val" if number < 2 else "train") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))
        faces = ingest(repository, here / "faces", str(source), source="folder")
        dvc(here, "add", "faces")
        dvc(here, "push")
        versions.append((artifacts.digest(faces), (here / "faces.dvc").read_bytes(), count))
    for version, pointer, count in versions[::-1]:
        (there / "faces.dvc").write_bytes(pointer)
        dvc(there, "pull")
        assert artifacts.digest(there / "faces") == version
        assert load_faces(there / "faces", "train").ids == tuple(f"train-{number}" for number in range(2, count))


def vote(number: int, choice: str = "a") -> Judgement:
    a, b = f"{number:064x}", f"{number + 1:064x}"
    shown = {"lq_id": "face/0", "lq_digest": "0", "digest_a": a, "digest_b": b, "pair_id": pair_id("0", a, b)}
    drawn = {"model_a": "m", "model_b": "m", "seed_a": 0, "seed_b": 1}
    asked = {"annotator": "ann", "repeat": 0, "source": "human", "instruction": "?", "tool_version": "0"}
    return Judgement(**shown, **drawn, **asked, choice=choice, time="2026-01-02T03:04:05Z")


def test_votes_in_s3_are_put_once_read_after_a_watermark_and_compacted(s3: Any) -> None:
    store = f"s3://{BUCKET}/team/votes"
    append(store, [vote(1)])
    append(store, [vote(1)])
    seen = read(store)
    assert len(seen.shards) == 1
    append(store, [vote(2)])
    append(store, [vote(3)])
    assert sorted(row.digest_a for row in read(store, seen.shards).judgements) == [vote(n).digest_a for n in (2, 3)]
    name = f"team/votes/{seen.shards[0]}"
    s3.put_object(Bucket=BUCKET, Key=name, Body=b"torn")
    assert [row.name for row in read(store).rejected] == list(seen.shards)
    assert compact(store) == 2
    assert sorted(row.digest_a for row in read(store).judgements) == [vote(n).digest_a for n in (2, 3)]


def test_writers_of_votes_in_s3_do_not_disturb_each_other(s3: Any) -> None:  # noqa: ARG001  the bucket
    store = f"s3://{BUCKET}/votes"
    shares = [range(0, 12), range(8, 20), range(4, 16)]
    threads = [
        threading.Thread(target=lambda rows=rows: [append(store, [vote(row)]) for row in rows]) for rows in shares
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = read(store)
    assert sorted(row.digest_a for row in votes.judgements) == [vote(number).digest_a for number in range(20)]
    assert len(votes.shards) == 20
    assert not votes.rejected


def test_a_vote_store_in_a_missing_bucket_or_without_a_bucket_is_the_users_mistake(s3: Any) -> None:  # noqa: ARG001
    with pytest.raises(UserError, match="no such bucket"):
        read("s3://nowhere/votes")
    with pytest.raises(UserError, match="no such bucket"):
        append("s3://nowhere/votes", [vote(1)])
    with pytest.raises(UserError, match="is no S3 address"):
        read("s3://")
    assert read(f"s3://{BUCKET}/empty").judgements == ()
