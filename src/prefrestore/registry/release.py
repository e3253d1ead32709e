"""A release: files named by the digest of their manifest, checked before use, never changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from prefrestore import artifacts
from prefrestore.errors import UserError

FORMAT_VERSION = 2
FORMATS: Mapping[str, str] = {
    ".html": "text",
    ".jinja": "text",
    ".json": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".png": "png",
    ".safetensors": "safetensors",
    ".txt": "text",
    ".yaml": "text",
}
"""Formats that hold data only. A pickle can run code, so nothing that may be one is released or loaded."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors")
MANIFEST_BYTES = 16 << 20


def members(parts: Mapping[str, Path]) -> dict[str, Path]:
    """Return every file of a release by its name in it; a part is a folder or a single file."""
    found = {}
    for name, part in parts.items():
        if part.is_file():
            found[name] = part
        inside = (path for path in part.rglob("*") if path.is_file())
        found |= {f"{name}/{path.relative_to(part).as_posix()}": path for path in inside}
    return dict(sorted(found.items()))


def describe(parts: Mapping[str, Path]) -> dict[str, Any]:
    """Return the manifest of a release made of named parts: every file with sha256, size and format, and versions.

    Raises:
        UserError: a file is of a format that releases do not hold, or is not what its name says.
    """
    return {
        "format_version": FORMAT_VERSION,
        "versions": {name: version(name) for name in ("prefrestore", *LIBRARIES)},
        "files": {name: _entry(name, path) for name, path in members(parts).items()},
    }


def _entry(name: str, path: Path) -> dict[str, Any]:
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a release holds no {path.suffix or 'nameless'} files ({name}): use safetensors")
    check_content(path)
    return {
        "sha256": artifacts.file_digest(path),
        "size": path.stat().st_size,
        "format": FORMATS[path.suffix],
    }


def check_content(path: Path) -> None:
    """Check by its first bytes that a file is what its name says; a renamed pickle or archive is not.

    Raises:
        UserError: it is something else.
    """
    form = FORMATS[path.suffix]
    with path.open("rb") as stream:
        start = stream.read(4096)
    genuine = {
        "parquet": start.startswith(b"PAR1"),
        "png": start.startswith(b"\x89PNG\r\n\x1a\n"),
        "safetensors": _is_safetensors(start, path.stat().st_size),
        "text": b"\0" not in start and not start.startswith((b"\x80", b"PK\x03\x04")),
    }
    if not genuine[form]:
        raise UserError(f"{path}: is no {form} file whatever its name says: a release holds data only, never a pickle")


def _is_safetensors(start: bytes, size: int) -> bool:
    """A length of 8 bytes, then that much JSON (format of the safetensors library)."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 that names a release."""
    return hashlib.sha256(artifacts.canonical_json(manifest).encode()).hexdigest()


def parse(data: bytes, origin: str, expected: str) -> dict[str, dict[str, Any]]:
    """Return the files that a manifest names.

    Args:
        data: the manifest's bytes.
        origin: where they come from, for the message.
        expected: digest of the release.

    Raises:
        UserError: damaged, of another release or a newer format, or it names files outside the release.
    """
    try:
        manifest = json.loads(data)
        files = {str(name): dict(entry) for name, entry in manifest["files"].items()}
        newer = int(manifest.get("format_version", 1)) > FORMAT_VERSION
        found = digest(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{origin}: is damaged: fetch or publish the release again") from None
    place = origin.removesuffix(f"/{artifacts.MANIFEST}")
    if found != expected:
        raise UserError(f"{place}: is another release than {expected:.12}: fetch or publish it again")
    if newer:
        raise UserError(f"{place}: was released by a newer version of this program: update it")
    for name in files:
        _check_name(place, name)
    return files


def _check_name(place: str, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.suffix not in FORMATS:
        raise UserError(f"{place}: {name} is no file of a release: do not use it")


def own_digest(folder: Path) -> str:
    """Return the digest that a release folder claims by its manifest.

    Raises:
        UserError: there is no manifest.
    """
    return hashlib.sha256(_manifest(folder)).hexdigest()


def verify(folder: Path, expected: str) -> None:
    """Check that a release is the one of this digest and that no file was changed, added or lost.

    Raises:
        UserError: names the first thing that is wrong.
    """
    files = parse(_manifest(folder), f"{folder}/{artifacts.MANIFEST}", expected)
    for name, entry in files.items():
        _verify_file(folder, name, entry)
    _check_nothing_else(folder, files)


def _manifest(folder: Path) -> bytes:
    path = folder / artifacts.MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no release is there (no {artifacts.MANIFEST}): publish it again")
    if path.stat().st_size > MANIFEST_BYTES:
        raise UserError(f"{path}: is no manifest of a release (over {MANIFEST_BYTES >> 20} MiB): do not use it")
    return path.read_bytes()


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{folder}: {name} is missing: fetch or publish the release again")
    if path.stat().st_size != entry.get("size") or artifacts.file_digest(path) != entry.get("sha256"):
        raise UserError(f"{folder}: {name} was changed after release: fetch or publish the release again")
    check_content(path)


def _check_nothing_else(folder: Path, files: Iterable[str]) -> None:
    present = {member.relative_to(folder).as_posix() for member in folder.rglob("*") if not member.is_dir()}
    for name in sorted(present - set(files) - {artifacts.MANIFEST}):
        raise UserError(f"{folder}: {name} is no part of the release: remove it, or fetch the release again")
