"""Artifacts are folders: written beside their place, described by a manifest, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefrestore.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made from; nothing volatile, so equal work gives equal bytes."""

    artifact: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    format_version: int = FORMAT_VERSION


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and fixed layout, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's sorted relative names and contents."""
    if path.is_file():
        return file_digest(path)
    total = hashlib.sha256()
    for member in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{member.relative_to(path).as_posix()}\0{file_digest(member)}\n".encode())
    return total.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest.

    Raises:
        UserError: the folder is no artifact, or one of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a finished artifact (no {MANIFEST}): run the stage that writes it first")
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}): run the stage that writes it again") from None
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {manifest.format_version}, this program reads {FORMAT_VERSION}: "
            "run the stage that writes it again"
        )
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON to ``path`` through a temporary sibling and a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(canonical_json(value), encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file of our own making."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file of an artifact is read into one line.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: is missing: run the stage that writes {path.parent.name} again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is damaged or of another kind ({reason:.120}): run the stage that writes {path.parent.name} again"
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into an artifact folder."""
    write_json(folder / MANIFEST, asdict(manifest))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a fresh temporary sibling of ``target`` and rename it into place if the block succeeds.

    Raises:
        UserError: no folder can be made there.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}): choose another place") from None
    try:
        yield temporary
        _share(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give files the rights of their folder: safetensors writes for the owner alone, and pods have other users."""
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(rights)


def _remove_leftovers(target: Path) -> None:
    """Remove temporary siblings of processes that were killed while they wrote."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        owner = path.name.split(".")[-2]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
