"""Candidates from Parquet tables and tar shards (WebDataset layout), read in bounded memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefrestore.data.candidates import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    Candidate,
    identifier,
    one_line,
    printable,
    split_of_name,
)
from prefrestore.data.tables import Split
from prefrestore.errors import UserError

PARQUET, TAR = ".parquet", ".tar"
CAPTION_COLUMNS = ("text", "txt", "caption")
LICENCE_COLUMNS = ("licence", "license")
READ_ROWS = 16


def count_archive(path: Path) -> int:
    """Return how many candidates an archive holds; 1 for a damaged one, which gives one refusal."""
    try:
        if path.suffix == PARQUET:
            return int(pq.read_metadata(path).num_rows)
        with tarfile.open(path) as archive:
            return sum(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in archive.getnames())
    except (pa.ArrowInvalid, tarfile.TarError, OSError):
        return 1


def archive_candidates(path: Path, name: str, *, by_name: bool) -> Iterator[Candidate]:
    """Yield the candidates of one archive; a damaged archive gives what can be read and one refusal.

    Args:
        path: file on this machine.
        name: what the source calls it.
        by_name: whether names and a column ``split`` decide the split.

    Raises:
        UserError: a Parquet file without a column ``image``.
    """
    split = split_of_name(name) if by_name else None
    read = _parquet if path.suffix == PARQUET else _tar
    try:
        yield from read(path, name, split, by_name)
    except (pa.ArrowException, tarfile.TarError, OSError, EOFError) as error:
        yield Candidate(identifier(name), printable(name), b"", problem=f"damaged archive ({type(error).__name__})")


def _parquet(path: Path, name: str, split: Split | None, by_name: bool) -> Iterator[Candidate]:
    with pq.ParquetFile(path) as file:
        columns = set(file.schema_arrow.names)
        if "image" not in columns:
            raise UserError(f"ingest.uri: {name} has no column image (found {', '.join(sorted(columns))}): rename it")
        known = ("image", *CAPTION_COLUMNS, *LICENCE_COLUMNS, "identity", "split")
        wanted = [column for column in known if column in columns]
        number = 0
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=wanted):
            for row in batch.to_pylist():
                yield _row(row, f"{name}#{number:08d}", split, by_name)
                number += 1


def _row(row: dict[str, Any], name: str, split: Split | None, by_name: bool) -> Candidate:
    image = row["image"]
    data = image.get("bytes") if isinstance(image, dict) else image  # the hub stores {bytes, path}
    named = split_of_name(str(row["split"])) if by_name and row.get("split") else None
    return Candidate(
        id=identifier(name.replace("#", "-")),
        name=printable(name),
        payload=data if isinstance(data, bytes) else b"",
        caption=_first(row, CAPTION_COLUMNS),
        identity=str(row.get("identity") or ""),
        licence=_first(row, LICENCE_COLUMNS),
        split=named or split,
        problem="" if isinstance(data, bytes) else "no image in this row",
    )


def _first(row: dict[str, Any], columns: Sequence[str]) -> str:
    """Return the first of some columns that is filled, as one line."""
    return one_line(next((str(row[column]) for column in columns if row.get(column)), ""))


def _tar(path: Path, name: str, split: Split | None, by_name: bool) -> Iterator[Candidate]:  # noqa: ARG001 - as _parquet
    """Group neighbouring members whose names agree up to the first dot: image, ``.txt`` caption, ``.cls`` identity."""
    with tarfile.open(path) as archive:
        group: dict[str, tarfile.TarInfo] = {}
        stem = None
        number = 0
        for member in archive:
            key, suffix = _key(member.name)
            if key != stem and group:
                yield _member(archive, group, f"{name}#{number:08d}-{stem}", split)
                number += 1
                group = {}
            stem = key
            group[suffix] = member
        if group:
            yield _member(archive, group, f"{name}#{number:08d}-{stem}", split)


def _key(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}".lstrip("/"), f".{suffix.lower()}"


def _member(archive: tarfile.TarFile, group: dict[str, tarfile.TarInfo], name: str, split: Split | None) -> Candidate:
    image = next((member for suffix, member in group.items() if suffix in IMAGE_SUFFIXES), None)
    text = group.get(".txt")
    problem = _problem(image)
    return Candidate(
        id=identifier(name.replace("#", "-").replace("/", "-")),
        name=printable(name),
        payload=b"" if image is None or problem else _bytes(archive, image),
        caption="" if text is None or _problem(text) else one_line(_bytes(archive, text)),
        split=split,
        problem=problem,
    )


def _problem(member: tarfile.TarInfo | None) -> str:
    if member is None:
        return "no image of this name"
    if not member.isreg():
        return "not a regular file"
    return "file too large" if member.size > MAX_FILE_BYTES else ""


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    data = stream.read() if stream else b""
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
