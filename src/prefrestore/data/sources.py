"""Where faces come from: every source gives candidates in a fixed order; none of them decodes pixels."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from prefrestore.config import IngestConfig
from prefrestore.data.archives import PARQUET, TAR, archive_candidates, count_archive
from prefrestore.data.candidates import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    Candidate,
    identifier,
    one_line,
    printable,
    split_of_name,
    unique,
)
from prefrestore.errors import UserError
from prefrestore.runtime.storage import Remote, download, list_objects, read

SPLIT_FOLDERS = ("train", "val", "eval")
OUTSIDE = "outside the folders train and val"


@dataclass(frozen=True)
class Source:
    """Candidates, given lazily, and how many there are; None where only reading them all would tell."""

    candidates: Iterator[Candidate]
    total: int | None


def open_source(config: IngestConfig) -> Source:
    """Return the source that the configuration names.

    Raises:
        UserError: the source does not exist, cannot be reached, or holds nothing that could be a face.
    """
    openers: dict[str, Callable[[str, bool], Source]] = {
        "folder": _folder,
        "parquet": lambda uri, by_name: _archives(uri, by_name, PARQUET),
        "tar": lambda uri, by_name: _archives(uri, by_name, TAR),
        "hf": _hub,
        "s3": _s3,
    }
    return openers[config.source](config.uri, config.split == "folder")


# --- files on this machine ------------------------------------------------------------------------


def _folder(uri: str, by_name: bool) -> Source:
    if not uri:
        raise UserError("ingest.uri: is empty: give the path of a folder of images")
    found = folder_candidates(Path(uri), by_name=by_name)
    return Source(iter(found), len(found))


def folder_candidates(root: Path, *, by_name: bool) -> list[Candidate]:
    """Return the image files under a folder in the order of their ids.

    If ``by_name``, subfolders ``train`` and ``val`` (or ``eval``) are the splits where one of them exists. A caption is
    the text file of the same stem; an identity is the folder an image lies in.

    Raises:
        UserError: there is no such folder, or no image file in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give the path of a folder of images")
    paths = [path for path in root.rglob("*") if _is_image_name(path.relative_to(root).as_posix())]
    if not paths:
        raise UserError(f"{root} holds no image files: expected JPEG, PNG, WebP, TIFF or BMP")
    by_name = by_name and any((root / name).is_dir() for name in SPLIT_FOLDERS)
    return unique([_file_candidate(root, path, by_name) for path in paths])


def _is_image_name(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _file_candidate(root: Path, path: Path, by_name: bool) -> Candidate:
    relative = path.relative_to(root)
    split = split_of_name(relative.parts[0]) if by_name and len(relative.parts) > 1 else None
    problem = _problem(root, path) or (OUTSIDE if by_name and split is None else "")
    return Candidate(
        id=identifier(relative.with_suffix("").as_posix()),
        name=printable(relative.as_posix()),
        payload=path,
        caption="" if problem else _side_car(root, path),
        identity=_identity(relative),
        split=split,
        problem=problem,
    )


def _identity(relative: Path | PurePosixPath) -> str:
    return printable(relative.parent.as_posix() if len(relative.parts) > 1 else relative.stem)


def _problem(root: Path, path: Path) -> str:
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError):
        return "link to nowhere or unreadable"
    if not target.is_relative_to(root.resolve()):
        return "link out of the folder"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return "file too large" if status.st_size > MAX_FILE_BYTES else ""


def _side_car(root: Path, path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file() or _problem(root, text):
        return ""
    return one_line(text.read_bytes())


def _archives(uri: str, by_name: bool, suffix: str) -> Source:
    """Give the rows of one archive, or of all archives under a folder in the order of their names."""
    root = Path(uri)
    paths = [root] if root.is_file() else sorted(root.rglob(f"*{suffix}"))
    if not paths:
        raise UserError(f"ingest.uri: {uri!r} is no {suffix} file and no folder of them: give the path of one")
    base = root.parent if root.is_file() else root
    candidates = (
        candidate
        for path in paths
        for candidate in archive_candidates(path, path.relative_to(base).as_posix(), by_name=by_name)
    )
    return Source(candidates, sum(map(count_archive, paths)))


# --- remote ---------------------------------------------------------------------------------------


def _hub(uri: str, by_name: bool) -> Source:
    """Give the rows of a data set on the Hugging Face hub, ``[hf:]OWNER/NAME[@REVISION]``.

    The hub's client downloads into its cache: what is there is not fetched again, and cut downloads are continued.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = uri.removeprefix("hf:").partition("@")
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=[f"*{PARQUET}", f"*{TAR}"]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"ingest.uri: data set {name!r} cannot be fetched ({detail:.160}): check its name") from None
    suffix = PARQUET if any(Path(folder).rglob(f"*{PARQUET}")) else TAR
    return _archives(folder, by_name, suffix)


def _s3(uri: str, by_name: bool) -> Source:
    """Give what lies below an S3 prefix: Parquet and tar shards, or else images with side-car captions.

    One object at a time is on this machine; a cut download is continued, also by a later run.
    """
    objects = list_objects(uri)
    prefix = uri.removeprefix("s3://").partition("/")[2]
    base = prefix if prefix.endswith("/") or not prefix else prefix.rpartition("/")[0] + "/" * ("/" in prefix)
    named = {remote.key.removeprefix(base).lstrip("/"): remote for remote in objects}
    shards = {name: remote for name, remote in named.items() if PurePosixPath(name).suffix in {PARQUET, TAR}}
    if shards:
        return Source(_s3_shards(shards, by_name), None)
    images = {name: remote for name, remote in named.items() if _is_image_name(name)}
    if not images:
        raise UserError(f"ingest.uri: {uri} holds neither images nor {PARQUET} or {TAR} shards: check the prefix")
    by_name = by_name and any(split_of_name(name) for name in images)
    found = unique([_s3_candidate(name, remote, by_name) for name, remote in images.items()])
    return Source((_s3_read(candidate, named) for candidate in found), len(found))


def _s3_shards(shards: dict[str, Remote], by_name: bool) -> Iterator[Candidate]:
    for name, remote in shards.items():
        path = download(remote)
        try:
            yield from archive_candidates(path, name, by_name=by_name)
        finally:
            path.unlink(missing_ok=True)


def _s3_candidate(name: str, remote: Remote, by_name: bool) -> Candidate:
    path = PurePosixPath(name)
    split = split_of_name(path.parts[0]) if by_name and len(path.parts) > 1 else None
    problem = "file too large" if remote.size > MAX_FILE_BYTES else OUTSIDE if by_name and split is None else ""
    return Candidate(
        id=identifier(path.with_suffix("").as_posix()),
        name=printable(name),
        payload=b"",
        identity=_identity(path),
        split=split,
        problem=problem,
    )


def _s3_read(candidate: Candidate, named: dict[str, Remote]) -> Candidate:
    if candidate.problem:
        return candidate
    text = named.get(PurePosixPath(candidate.name).with_suffix(".txt").as_posix())
    caption = one_line(read(text)) if text else ""
    return replace(candidate, payload=read(named[candidate.name]), caption=caption)
