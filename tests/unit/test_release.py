"""A release is whole, unchanged and free of code, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prefrestore.errors import UserError
from prefrestore.registry import release


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for name in ("base", "policy"):
        folder = tmp_path / "parts" / name
        (folder / "deep").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": name}), encoding="utf-8")
        (folder / "deep" / "weights.safetensors").write_bytes(bytes(range(100)))
        folders[name] = folder
    return folders


def test_putting_twice_gives_one_release(parts: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = release.put(store, parts)
    assert first == release.put(store, parts)
    assert [path.name for path in store.iterdir()] == [first[0]]
    assert (store / first[0] / "policy" / "deep" / "weights.safetensors").read_bytes() == bytes(range(100))


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
    digest, folder = release.put(tmp_path / "store", parts)
    release.verify(folder, digest)
    damage(folder)
    with pytest.raises(UserError, match=words):
        release.verify(folder, digest)
    with pytest.raises(UserError, match=words):
        release.put(tmp_path / "store", parts)


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
        release.put(tmp_path / "store", parts)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname.json", "base/../../x.json", "base/model.pkl"])
def test_a_manifest_that_points_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    manifest = {"format_version": 1, "files": {name: {"sha256": "0" * 64, "size": 1}}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="no file of a release"):
        release.verify(folder, release.digest(manifest))
