"""The Parquet shards of the artifacts ``faces`` and ``pairs``: schemas, writing, reading in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from prefrestore.artifacts import canonical_json
from prefrestore.errors import UserError

Split = Literal["train", "eval"]
COUNTS = "counts.json"
REJECTED = "rejected.parquet"
READ_ROWS = 64

FACE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("landmarks", pa.list_(pa.float32())),
        ("box", pa.list_(pa.float32())),
        ("sharpness", pa.float32()),
        ("licence", pa.string()),
        ("phash", pa.string()),
        ("identity", pa.string()),
    ]
)
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("variant", pa.int32()),
        ("split", pa.string()),
        ("recipe", pa.string()),
        ("severity", pa.string()),
        ("image", pa.binary()),
        ("record", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([("name", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Face:
    """One row of ``faces``."""

    id: str
    split: Split
    image: bytes
    sha256: str
    width: int
    height: int
    caption: str
    landmarks: Sequence[float]
    box: Sequence[float]
    sharpness: float
    licence: str
    phash: str
    identity: str


@dataclass(frozen=True)
class Pair:
    """One row of the LQ table of ``pairs``."""

    id: str
    variant: int
    split: Split
    recipe: str
    severity: str
    image: bytes
    record: str


@dataclass(frozen=True)
class Rejection:
    """A source image that was set aside."""

    name: str
    reason: str


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Face | Pair | Rejection]) -> None:
    """Write dataclasses as one Parquet file, a row group at a time as they come; equal rows give equal bytes."""
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        while group := list(islice(remaining, READ_ROWS)):
            columns = {field.name: [getattr(row, field.name) for row in group] for field in schema}
            file.write_table(pa.table(columns, schema=schema))


def write_shards(folder: Path, stem: str, schema: pa.Schema, rows: Iterable[Face | Pair], shard_rows: int) -> None:
    """Write rows into numbered Parquet files, ``shard_rows`` in each but the last; never more than a group waits."""
    remaining = iter(rows)
    for number, first in enumerate(remaining):
        write_rows(folder / f"{stem}-{number:05d}.parquet", schema, chain([first], islice(remaining, shard_rows - 1)))


def write_set_aside(folder: Path, rejected: Sequence[Rejection], taken: Mapping[Split, int]) -> None:
    """Write ``rejected.parquet`` and ``counts.json``."""
    rejected = sorted(rejected, key=lambda row: row.name)
    write_rows(folder / REJECTED, REJECTED_SCHEMA, rejected)
    reasons: dict[str, int] = {}
    for row in rejected:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    counts = {"train": taken["train"], "eval": taken["eval"], "rejected": len(rejected), "reasons": reasons}
    (folder / COUNTS).write_text(canonical_json(counts), encoding="utf-8")


def shard_paths(folder: Path, stem: str) -> list[Path]:
    """Return the shards of a table in order.

    Raises:
        UserError: there is none.
    """
    paths = sorted(folder.glob(f"{stem}-*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no {stem}-*.parquet: run the stage that writes it first")
    return paths


def read_rows(path: Path, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[dict[str, Any]]:
    """Yield rows of one shard as plain mappings, a few at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=columns):
            yield from (row for row in batch.to_pylist() if split is None or row["split"] == split)


def read_faces(path: Path) -> Iterator[Face]:
    """Yield the faces of one shard."""
    return (Face(**row) for row in read_rows(path))


def row_count(paths: Iterable[Path]) -> int:
    """Return how many rows some Parquet files hold, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in paths)
