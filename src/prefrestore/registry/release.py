"""A release: a folder of files named by the digest of its content, checked before use, never changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prefrestore import artifacts
from prefrestore.errors import UserError

FORMAT_VERSION = 1
SUFFIXES = frozenset({".html", ".json", ".jinja", ".md", ".parquet", ".png", ".safetensors", ".txt", ".yaml"})
"""Formats that hold data only. A pickle can run code, so nothing that may be one is released or loaded."""


def describe(parts: Mapping[str, Path]) -> dict[str, Any]:
    """Return the manifest of a release made of named folders: every file with its sha256 and size.

    Raises:
        UserError: a file is of a format that releases do not hold.
    """
    members = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in parts.items()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for name, path in members.items():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: a release holds no {path.suffix or 'nameless'} files ({name}): use safetensors")
    files = {
        name: {"sha256": artifacts.file_digest(path), "size": path.stat().st_size}
        for name, path in sorted(members.items())
    }
    return {"format_version": FORMAT_VERSION, "files": files}


def digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 that names a release."""
    return hashlib.sha256(artifacts.canonical_json(manifest).encode()).hexdigest()


def put(store: Path, parts: Mapping[str, Path]) -> tuple[str, Path]:
    """Copy a release into the store, whole or not at all; return its digest and folder. Putting it again is harmless.

    Raises:
        UserError: as :func:`describe`, or what stands there already is damaged.
    """
    manifest = describe(parts)
    name = digest(manifest)
    target = store / name
    if not target.exists():
        with artifacts.replacing(target) as folder:
            for part, source in parts.items():
                shutil.copytree(source, folder / part)
            artifacts.write_json(folder / artifacts.MANIFEST, manifest)
    verify(target, name)
    return name, target


def verify(folder: Path, expected: str) -> None:
    """Check that a release is the one of this digest and that no file was changed, added or lost.

    Raises:
        UserError: names the first thing that is wrong.
    """
    path = folder / artifacts.MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no release is there (no {artifacts.MANIFEST}): publish it again")
    try:
        manifest = artifacts.read_json(path)
        files: dict[str, Any] = {str(name): dict(entry) for name, entry in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: is damaged: fetch or publish the release again") from None
    if digest(manifest) != expected:
        raise UserError(f"{folder}: is another release than {expected:.12}: fetch or publish it again")
    for name, entry in files.items():
        _verify_file(folder, name, entry)
    present = {member.relative_to(folder).as_posix() for member in folder.rglob("*") if not member.is_dir()}
    for name in sorted(present - set(files) - {artifacts.MANIFEST}):
        raise UserError(f"{folder}: {name} is no part of the release: remove it, or fetch the release again")


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or pure.suffix not in SUFFIXES:
        raise UserError(f"{folder}: {name} is no file of a release: do not use it")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{folder}: {name} is missing: fetch or publish the release again")
    if path.stat().st_size != entry.get("size") or artifacts.file_digest(path) != entry.get("sha256"):
        raise UserError(f"{folder}: {name} was changed after release: fetch or publish the release again")
