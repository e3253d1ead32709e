"""Sources: folders, Parquet, tar, splits and captions."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrestore import configfile
from prefrestore.config import IngestConfig
from prefrestore.data.candidates import Candidate, identifier, split_by_hash, split_of_name
from prefrestore.data.images import encode_png
from prefrestore.data.sources import open_source
from prefrestore.errors import UserError


def png(value: int) -> bytes:
    return encode_png(np.full((16, 16, 3), value, np.uint8))


def section(repository: Path, **changes: object) -> IngestConfig:
    base = configfile.load(repository / "presets" / "smoke.yaml").ingest
    return base.model_copy(update={"source": "folder", "num_train": 0, "num_eval": 0, **changes})


def take(repository: Path, **changes: object) -> list[Candidate]:
    return list(open_source(section(repository, **changes)).candidates)


def test_subfolders_are_the_split_and_side_cars_the_captions(repository: Path, tmp_path: Path) -> None:
    for name in ("train/b.png", "train/a.png", "val/c.png", "d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(1))
    (tmp_path / "train" / "a.txt").write_text("a man\nwith  glasses\n")
    (tmp_path / ".hidden.png").write_bytes(png(1))
    (tmp_path / "README.md").write_text("no image")
    found = {candidate.name: candidate for candidate in take(repository, uri=str(tmp_path))}
    assert {name: row.split for name, row in found.items()} == {
        "train/a.png": "train", "train/b.png": "train", "val/c.png": "eval", "d.png": None
    }  # fmt: skip
    assert found["train/a.png"].caption == "a man with glasses"
    assert found["d.png"].problem == "outside the folders train and val"
    by_hash = take(repository, uri=str(tmp_path), split="hash")
    assert {candidate.split for candidate in by_hash} == {None}
    assert not any(candidate.problem for candidate in by_hash)


def test_names_that_fall_together_stay_apart(repository: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "ü.png", "日本.png", "b c.png"):
        (tmp_path / name).write_bytes(png(1))
    found = take(repository, uri=str(tmp_path))
    ids = [candidate.id for candidate in found]
    assert len(set(ids)) == 5
    assert ids == sorted(ids)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._") for name in ids)


def test_links_and_oddities_are_set_aside(repository: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(1))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(2))
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    problems = {candidate.name: candidate.problem for candidate in take(repository, uri=str(folder))}
    assert problems == {
        "good.png": "",
        "inside.png": "",
        "link.png": "link out of the folder",
        "loop.png": "link to nowhere or unreadable",
        "folder.png": "not a regular file",
    }


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_parquet_gives_image_text_and_split(repository: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000.parquet", [{"image": png(1), "text": "one"}, {"image": None, "text": "two"}])
    write_parquet(
        tmp_path / "validation-00000.parquet", [{"image": {"bytes": png(3), "path": "x"}, "caption": "three"}]
    )
    source = open_source(section(repository, source="parquet", uri=str(tmp_path)))
    found = list(source.candidates)
    assert source.total == 3
    assert [(row.caption, row.split, row.problem) for row in found] == [
        ("one", "train", ""),
        ("two", "train", "no image in this row"),
        ("three", "eval", ""),
    ]
    assert found[0].payload == png(1)
    assert found[2].payload == png(3)
    write_parquet(tmp_path / "b" / "x.parquet", [{"picture": b""}])
    with pytest.raises(UserError, match="has no column image"):
        take(repository, source="parquet", uri=str(tmp_path / "b"))


def test_damaged_parquet_is_one_refusal(repository: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": png(1)}])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    found = take(repository, source="parquet", uri=str(tmp_path))
    assert [bool(row.problem) for row in found] == [False, True]
    assert "damaged archive" in found[1].problem


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def test_tar_groups_members_and_survives_truncation(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    write_tar(path, {"a/1.png": png(1), "a/1.txt": b"first", "a/2.txt": b"no image", "a/3.jpg": png(3)})
    found = take(repository, source="tar", uri=str(path))
    assert [(row.caption, row.problem) for row in found] == [
        ("first", ""),
        ("no image", "no image of this name"),
        ("", ""),
        ("", "not a regular file"),
    ]
    assert [row.id for row in found] == sorted(row.id for row in found)
    path.write_bytes(path.read_bytes()[:2700])
    cut = take(repository, source="tar", uri=str(path))
    assert cut[0].payload == png(1)
    assert "damaged archive" in cut[-1].problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": ""}, "ingest.uri: is empty"),
        ({"uri": "nowhere"}, "nowhere: no such folder"),
        ({"source": "parquet", "uri": "nowhere"}, "is no .parquet file"),
        ({"source": "tar", "uri": "nowhere"}, "is no .tar file"),
        ({"source": "hf", "uri": "hf:nobody/nothing"}, "data set 'nobody/nothing' cannot be fetched"),
        ({"source": "s3", "uri": "bucket/prefix"}, "is no S3 address"),
    ],
)
def test_missing_sources_are_one_clear_line(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        take(repository, **changes)
    assert "\n" not in str(caught.value)


def test_hub_data_set_is_read_from_the_clients_cache(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "datasets--someone--faces"
    write_parquet(cache / "snapshots" / "abc" / "data" / "train-00000.parquet", [{"image": png(1), "text": "one"}])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = take(repository, source="hf", uri="hf:someone/faces")
    assert [(row.caption, row.split) for row in found] == [("one", "train")]


@given(text=st.text(min_size=1, max_size=200))
def test_identifiers_are_plain_and_altered_ones_differ(text: str) -> None:
    found = identifier(text)
    assert found
    assert set(found) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")
    assert identifier(text + "ß") != found


def test_hash_split_is_steady_and_has_its_share() -> None:
    split = [split_by_hash(0, str(index), 0.2) for index in range(4000)]
    assert split == [split_by_hash(0, str(index), 0.2) for index in range(4000)]
    assert split.count("eval") == pytest.approx(800, abs=80)
    assert split_of_name("data/validation-00001-of-2.parquet") == "eval"
    assert split_of_name("training/x.jpg") is None
