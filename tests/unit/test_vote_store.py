"""The vote store: append-only, whole shards, several writers, nothing lost."""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefrestore.data.preferences import Judgement, judgement_id
from prefrestore.data.vote_store import append, compact, read, shards
from prefrestore.errors import UserError
from prefrestore.runtime.shelf import FolderShelf
from support.votes import vote


def ids(store: Path) -> list[str]:
    return sorted(judgement_id(row) for row in read(store).judgements)


def test_votes_come_back_one_shard_a_day(tmp_path: Path) -> None:
    rows = [vote(1), vote(2), vote(3, day=2)]
    append(tmp_path, rows)
    assert ids(tmp_path) == sorted(map(judgement_id, rows))
    assert [name.split("/")[1] for name in shards(tmp_path)] == ["dt=2026-01-01", "dt=2026-01-02"]


def test_appending_the_same_votes_again_adds_nothing(tmp_path: Path) -> None:
    append(tmp_path, [vote(1), vote(2)])
    append(tmp_path, [vote(2), vote(1)])
    assert len(shards(tmp_path)) == 1


def test_the_watermark_gives_only_what_is_new(tmp_path: Path) -> None:
    append(tmp_path, [vote(1)])
    seen = read(tmp_path)
    append(tmp_path, [vote(2)])
    assert [row.digest_a for row in read(tmp_path, after=seen.shards).judgements] == [vote(2).digest_a]


def test_a_flipped_byte_and_a_foreign_file_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    good, bad = (tmp_path / append(tmp_path, [vote(number)])[0] for number in (1, 2))
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    (good.parent / "part-nonsense.parquet").write_bytes(b"nonsense")
    votes = read(tmp_path)
    assert [row.digest_a for row in votes.judgements] == [vote(1).digest_a]
    assert sorted(Path(rejection.name).name for rejection in votes.rejected) == sorted(
        [bad.name, "part-nonsense.parquet"]
    )


def test_a_shard_with_a_right_name_but_wrong_content_is_named(tmp_path: Path) -> None:
    import hashlib

    folder = tmp_path / "preferences" / "dt=2026-01-01"
    folder.mkdir(parents=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(vote(1)), {**asdict(vote(2)), "choice": "left"}]), sink)
    for data in (b"no parquet", sink.getvalue().to_pybytes()):
        (folder / f"part-{hashlib.sha256(data).hexdigest()[:32]}.parquet").write_bytes(data)
    votes = read(tmp_path)
    assert [row.digest_a for row in votes.judgements] == [vote(1).digest_a]
    assert any("is no Parquet file" in rejection.reason for rejection in votes.rejected)
    assert any(rejection.name.endswith(":1") and "choice" in rejection.reason for rejection in votes.rejected)


def test_an_unfinished_write_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / append(tmp_path, [vote(1)])[0]
    (path.parent / f".{path.name}.7.tmp").write_bytes(b"half")
    assert len(read(tmp_path).judgements) == 1
    assert not read(tmp_path).rejected


def _write_many(store: Path, start: int) -> None:
    for number in range(start, start + 50):
        append(store, [vote(number)])


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, start)) for start in (0, 40, 80)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert ids(tmp_path) == sorted(judgement_id(vote(number)) for number in range(130))


def test_compaction_keeps_every_vote_once_and_leaves_damaged_shards_alone(tmp_path: Path) -> None:
    for rows in ([vote(1)], [vote(2)], [vote(1), vote(3)], [vote(4, day=2)]):
        append(tmp_path, rows)
    damaged = tmp_path / "preferences" / "dt=2026-01-01" / "part-0.parquet"
    damaged.write_bytes(b"damaged")
    before = set(ids(tmp_path))
    assert compact(tmp_path) == 3
    assert ids(tmp_path) == sorted(before)
    assert len(shards(tmp_path)) == 3
    assert damaged.exists()
    assert compact(tmp_path) == 0


def test_a_missing_store_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such vote store"):
        read(tmp_path / "none")


def test_a_later_time_is_another_record() -> None:
    assert judgement_id(vote(1)) != judgement_id(replace(vote(1), time="2026-01-01T00:00:01Z"))


def undo_of(vote_: Judgement, time: str) -> Judgement:
    return replace(vote_, choice="undo", time=time)


def test_an_undo_takes_back_what_came_before_and_nothing_else(tmp_path: Path) -> None:
    first = vote(1)
    again = replace(first, choice="b", time="2026-01-01T00:00:02Z")
    others = [vote(2), replace(first, annotator="bob"), replace(first, repeat=1)]
    append(tmp_path, [first, *others])
    append(tmp_path, [undo_of(first, "2026-01-01T00:00:01Z")])
    assert ids(tmp_path) == sorted(map(judgement_id, others))
    append(tmp_path, [again])
    votes = read(tmp_path)
    assert sorted(map(judgement_id, votes.judgements)) == sorted(map(judgement_id, [again, *others]))
    assert [row.choice for row in votes.undos] == ["undo"]
    compact(tmp_path)
    assert sorted(map(judgement_id, read(tmp_path).judgements)) == sorted(map(judgement_id, [again, *others]))


def test_a_reader_that_compaction_overtakes_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        append(tmp_path, [vote(number)])
    get, turns = FolderShelf.get, iter([True])

    def get_late(self: FolderShelf, name: str) -> bytes | None:
        if next(turns, False):
            compact(tmp_path)
        return get(self, name)

    monkeypatch.setattr(FolderShelf, "get", get_late)
    assert ids(tmp_path) == sorted(judgement_id(vote(number)) for number in range(3))
