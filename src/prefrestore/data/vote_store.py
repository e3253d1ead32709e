"""The vote store: append-only shards ``preferences/dt=YYYY-MM-DD/part-<digest>.parquet`` in a folder.

A shard is written once, whole or not at all, and its name carries the digest of its bytes; nothing is changed
afterwards, so any number of writers may share a store and a torn or altered shard is found by its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefrestore.data.preferences import Judgement, judgement_id, parse_judgement, parse_time, to_table
from prefrestore.data.tables import Rejection
from prefrestore.errors import UserError

FOLDER = "preferences"


@dataclass(frozen=True)
class Votes:
    """What a store holds: well-formed judgements, and what could not be read."""

    judgements: tuple[Judgement, ...]
    rejected: tuple[Rejection, ...]
    shards: tuple[str, ...]


def append(store: Path, judgements: Sequence[Judgement]) -> list[Path]:
    """Add judgements to the store, one shard per day; they are on disk when this returns.

    Equal judgements give equal names, so appending the same ones twice adds nothing.
    """
    days: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        days.setdefault(parse_time(judgement.time).date().isoformat(), []).append(judgement)
    return [_write_shard(store / FOLDER / f"dt={day}", rows) for day, rows in sorted(days.items())]


def _write_shard(folder: Path, rows: Iterable[Judgement]) -> Path:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(sorted(rows, key=judgement_id)), sink)
    data = sink.getvalue().to_pybytes()
    target = folder / f"part-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(target)
    _sync_folder(folder)
    return target


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shards(store: Path) -> tuple[str, ...]:
    """Return the names of all shards, relative to the store, sorted.

    Raises:
        UserError: there is no such store.
    """
    if not store.is_dir():
        raise UserError(f"{store}: no such vote store: give a folder that holds {FOLDER}/dt=*/part-*.parquet")
    return tuple(sorted(path.relative_to(store).as_posix() for path in store.glob(f"{FOLDER}/dt=*/part-*.parquet")))


def read(store: Path, after: Iterable[str] = ()) -> Votes:
    """Read every shard that is not in ``after`` (a watermark: the shards of an earlier :class:`Votes`).

    A shard whose bytes do not match its name, or that is no Parquet file, and a row that is no judgement are set aside
    by name; the rest is kept.

    Raises:
        UserError: there is no such store.
    """
    names = tuple(sorted(set(shards(store)) - set(after)))
    judgements: list[Judgement] = []
    rejected: list[Rejection] = []
    for name in names:
        good, bad = read_shard(store / name, name)
        judgements += good
        rejected += bad
    return Votes(tuple(judgements), tuple(rejected), names)


def read_shard(path: Path, name: str) -> tuple[list[Judgement], list[Rejection]]:
    """Read one shard; what is wrong in it is named ``name`` or ``name:row``."""
    data = path.read_bytes()
    if path.stem.removeprefix("part-") != hashlib.sha256(data).hexdigest()[:32]:
        return [], [Rejection(name, "its bytes do not match the digest in its name")]
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        return [], [Rejection(name, f"is no Parquet file ({error!s:.80})")]
    judgements, rejected = [], []
    for number, row in enumerate(rows):
        try:
            judgements.append(parse_judgement(row))
        except ValueError as error:
            rejected.append(Rejection(f"{name}:{number}", str(error)))
    return judgements, rejected


def compact(store: Path) -> int:
    """Merge each day's whole shards into one without duplicates and return how many files went.

    The merged shard is on disk before the first old one is removed, and readers drop duplicates, so a kill at any
    point loses nothing. Shards with anything wrong in them stay as they are.
    """
    removed = 0
    for day in sorted({Path(name).parent for name in shards(store)}):
        whole: dict[Path, list[Judgement]] = {}
        for path in sorted((store / day).glob("part-*.parquet")):
            judgements, rejected = read_shard(path, path.name)
            if not rejected:
                whole[path] = judgements
        merged = {judgement_id(row): row for rows in whole.values() for row in rows}
        if len(whole) < 2:
            continue
        target = _write_shard(store / day, merged.values())
        for path in whole:
            if path != target:
                path.unlink()
                removed += 1
    return removed
