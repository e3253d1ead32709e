"""A release is whole, unchanged and free of code, or it is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from prefrestore.errors import UserError
from prefrestore.registry import release
from prefrestore.registry.stores import FolderStore

WEIGHTS = save({"w": np.arange(25, dtype=np.float32)})


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for name in ("base", "policy"):
        folder = tmp_path / "parts" / name
        (folder / "deep").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": name}), encoding="utf-8")
        (folder / "deep" / "weights.safetensors").write_bytes(WEIGHTS)
        folders[name] = folder
    return folders


def test_putting_twice_gives_one_release(parts: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = FolderStore(store).put(parts)
    assert first == FolderStore(store).put(parts)
    assert first[1] == (store / first[0]).as_uri()
    assert [path.name for path in store.iterdir()] == [first[0]]
    assert (store / first[0] / "policy" / "deep" / "weights.safetensors").read_bytes() == WEIGHTS


def test_digest_depends_on_content_and_names_alone(parts: dict[str, Path], tmp_path: Path) -> None:
    other = {name: shutil.copytree(path, tmp_path / "elsewhere" / name) for name, path in parts.items()}
    before = release.digest(release.describe(parts))
    assert release.digest(release.describe(dict(reversed(list(other.items()))))) == before
    (other["base"] / "config.json").rename(other["base"] / "other.json")
    assert release.digest(release.describe(other)) != before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _flip(folder / "base" / "deep" / "weights.safetensors"), "weights.safetensors was changed"),
        (lambda folder: (folder / "base" / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "base" / "extra.json").write_text("{}"), "extra.json is no part"),
        (lambda folder: (folder / "manifest.json").unlink(), "no release is there"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": 1}'), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {}}'), "another release"),
        (lambda folder: _link(folder / "base" / "config.json"), "config.json is missing"),
    ],
)
def test_damage_is_found_and_named(damage, words: str, parts: dict[str, Path], tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    digest, _ = store.put(parts)
    folder = store.fetch(digest)
    damage(folder)
    with pytest.raises(UserError, match=words):
        release.verify(folder, digest)
    with pytest.raises(UserError, match=words):
        store.put(parts)


def _link(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    target = path.parents[3] / "outside.json"
    target.write_text(text, encoding="utf-8")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.bin", "model.ckpt", "run.py", "noname"])
def test_what_can_run_code_is_refused(name: str, parts: dict[str, Path], tmp_path: Path) -> None:
    (parts["base"] / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=name):
        FolderStore(tmp_path / "store").put(parts)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "config.json", "page.html", "faces.parquet", "face.png", "text.txt"]
)
@pytest.mark.parametrize("content", [pickle.dumps({"w": [1.0]}), b"PK\x03\x04" + bytes(100)])
def test_a_renamed_pickle_or_archive_is_refused(
    name: str, content: bytes, parts: dict[str, Path], tmp_path: Path
) -> None:
    (parts["base"] / name).write_bytes(content)
    with pytest.raises(UserError, match="whatever its name says"):
        FolderStore(tmp_path / "store").put(parts)
    # and also where somebody else made the release
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest = {"format_version": 2, "files": {name: entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="whatever its name says"):
        release.verify(folder, release.digest(manifest))


def test_the_manifest_says_size_format_and_versions(parts: dict[str, Path]) -> None:
    manifest = release.describe(parts)
    assert manifest["files"]["base/deep/weights.safetensors"]["format"] == "safetensors"
    assert manifest["files"]["base/deep/weights.safetensors"]["size"] == len(WEIGHTS)
    assert {"prefrestore", "torch", "diffusers"} <= set(manifest["versions"])


def test_a_release_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    manifest = {"format_version": release.FORMAT_VERSION + 1, "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="newer version of this program"):
        release.verify(tmp_path, release.digest(manifest))


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname.json", "base/../../x.json", "base/model.pkl"])
def test_a_manifest_that_points_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    manifest = {"format_version": 1, "files": {name: {"sha256": "0" * 64, "size": 1}}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="no file of a release"):
        release.verify(folder, release.digest(manifest))
