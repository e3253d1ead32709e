"""The vote store: append-only shards ``preferences/dt=YYYY-MM-DD/part-<digest>.parquet`` in a folder or in S3.

A shard is written once, whole or not at all, and its name carries the digest of its bytes; nothing is changed
afterwards, so any number of writers may share a store and a torn or altered shard is found by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from prefrestore.data.preferences import Judgement, judgement_id, parse_judgement, parse_time, settle, to_table
from prefrestore.data.tables import Rejection
from prefrestore.errors import UserError
from prefrestore.runtime.shelf import Place, Shelf, open_shelf

FOLDER = "preferences"
SHARDS = f"{FOLDER}/dt=*/part-*.parquet"
READ_TURNS = 5
"""How often the list of shards is taken anew because compaction took one away before it was read."""


@dataclass(frozen=True)
class Votes:
    """What a store holds.

    Attributes:
        judgements: well-formed ones that stand.
        rejected: what could not be read.
        shards: names of the shards that were read: the watermark.
        undos: records that took answers back; those answers are not among ``judgements``. A consumer that took an
            answer at an earlier watermark finds here that it no longer stands.
    """

    judgements: tuple[Judgement, ...]
    rejected: tuple[Rejection, ...]
    shards: tuple[str, ...]
    undos: tuple[Judgement, ...] = ()


def append(store: Place, judgements: Sequence[Judgement]) -> list[str]:
    """Add judgements to the store, one shard per day; they are durable when this returns. Return the shards' names.

    Equal judgements give equal names, so appending the same ones twice adds nothing.
    """
    shelf = open_shelf(store)
    days: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        days.setdefault(parse_time(judgement.time).date().isoformat(), []).append(judgement)
    return [_write_shard(shelf, f"{FOLDER}/dt={day}", rows) for day, rows in sorted(days.items())]


def _write_shard(shelf: Shelf, day: str, rows: Iterable[Judgement]) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(sorted(rows, key=judgement_id)), sink)
    data = sink.getvalue().to_pybytes()
    name = f"{day}/part-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    shelf.put(name, data)
    return name


def shards(store: Place) -> tuple[str, ...]:
    """Return the names of all shards, relative to the store, sorted.

    Raises:
        UserError: there is no such store.
    """
    shelf = open_shelf(store)
    if not shelf.exists():
        raise UserError(f"{store}: no such vote store: give a place that holds {SHARDS}")
    return tuple(shelf.names(SHARDS))


def read(store: Place, after: Iterable[str] = ()) -> Votes:
    """Read every shard that is not in ``after`` (a watermark: the shards of an earlier :class:`Votes`).

    A shard whose bytes do not match its name, or that is no Parquet file, and a row that is no judgement are set aside
    by name; the rest is kept.

    Raises:
        UserError: there is no such store.
    """
    seen = set(after)
    shelf = open_shelf(store)
    contents: dict[str, bytes | None] = {}
    for _ in range(READ_TURNS):
        names = set(shards(store)) - seen
        contents = {name: contents.get(name) or shelf.get(name) for name in sorted(names)}
        if None not in contents.values():
            return _parse_shards({name: data for name, data in contents.items() if data is not None})
    raise UserError(f"{store}: shards vanish while they are read: wait until it is compacted")


def _parse_shards(contents: Mapping[str, bytes]) -> Votes:
    judgements: list[Judgement] = []
    rejected: list[Rejection] = []
    for name, data in contents.items():
        good, bad = read_shard(data, name)
        judgements += good
        rejected += bad
    standing, undos = settle(judgements)
    return Votes(tuple(standing), tuple(rejected), tuple(contents), tuple(undos))


def read_shard(data: bytes, name: str) -> tuple[list[Judgement], list[Rejection]]:
    """Read the bytes of one shard; what is wrong in it is named ``name`` or ``name:row``."""
    if PurePosixPath(name).stem.removeprefix("part-") != hashlib.sha256(data).hexdigest()[:32]:
        return [], [Rejection(name, "its bytes do not match the digest in its name")]
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text in it is no UTF-8
        return [], [Rejection(name, f"is no Parquet file ({' '.join(str(error).split()):.80})")]
    judgements, rejected = [], []
    for number, row in enumerate(rows):
        try:
            judgements.append(parse_judgement(row))
        except ValueError as error:
            rejected.append(Rejection(f"{name}:{number}", str(error)))
    return judgements, rejected


def compact(store: Place) -> int:
    """Merge each day's whole shards into one without duplicates and return how many files went.

    The merged shard is durable before the first old one is removed, and readers drop duplicates, so a kill at any
    point loses nothing. Shards with anything wrong in them stay as they are.
    """
    shelf = open_shelf(store)
    days: dict[str, list[str]] = {}
    for name in shards(store):
        days.setdefault(name.rpartition("/")[0], []).append(name)
    return sum(_compact_day(shelf, day, names) for day, names in sorted(days.items()))


def _compact_day(shelf: Shelf, day: str, names: Sequence[str]) -> int:
    whole: dict[str, list[Judgement]] = {}
    for name in names:
        judgements, rejected = read_shard(shelf.get(name) or b"", name)
        if not rejected:
            whole[name] = judgements
    if len(whole) < 2:
        return 0
    merged = {judgement_id(row): row for rows in whole.values() for row in rows}
    target = _write_shard(shelf, day, merged.values())
    old = [name for name in whole if name != target]
    for name in old:
        shelf.remove(name)
    return len(old)
