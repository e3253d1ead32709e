"""Importing public pair data, and the commands that look after a vote store."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefrestore.commands.prefs import command
from prefrestore.data.images import encode_png
from prefrestore.data.pair_import import import_pairs, stored_image, stored_input
from prefrestore.data.vote_store import read
from prefrestore.errors import UserError
from prefrestore.runtime.shelf import open_shelf


def image(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """JSON lines of the chosen/rejected layout, images beside them; row 1 names a missing file."""
    for seed in range(6):
        (tmp_path / f"{seed}.png").write_bytes(encode_png(image(seed)))
    rows = [
        {"lq": "0.png", "chosen": "1.png", "rejected": "2.png", "prompt": "a man"},
        {"lq": "0.png", "chosen": "1.png", "rejected": "9.png", "prompt": "a man"},
        {"lq": "3.png", "chosen": "4.png", "rejected": "5.png", "prompt": ""},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_chosen_and_rejected(chosen: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = import_pairs(chosen, store, "public")
    assert done.judgements == 2
    assert [row.name for row in done.rejected] == ["pairs.jsonl:1"]
    votes = sorted(read(store).judgements, key=lambda row: row.lq_id)
    assert {(row.source, row.choice, row.annotator) for row in votes} == {("import", "a", "public")}
    by_lq = {row.lq_digest: row for row in votes}
    found = stored_input(open_shelf(store), votes[0].lq_digest)
    assert found is not None
    seed = 0 if np.array_equal(found[0], image(0)) else 3
    assert found[1] == ("a man" if seed == 0 else "")
    winner = stored_image(open_shelf(store), by_lq[votes[0].lq_digest].digest_a)
    assert winner is not None
    assert np.array_equal(winner, image(seed + 1))


def test_importing_twice_adds_nothing(chosen: Path, tmp_path: Path) -> None:
    for _ in range(2):
        import_pairs(chosen, tmp_path / "store", "public")
    assert len(read(tmp_path / "store").judgements) == 2
    assert len(read(tmp_path / "store").shards) == 1


@pytest.mark.parametrize("cell", [lambda data: data, lambda data: {"bytes": data, "path": None}])
def test_labels_in_parquet_with_bytes(cell: Callable[[bytes], Any], tmp_path: Path) -> None:
    labels = [(1, 0), (0, 1), (0.5, 0.5), (1, 1), (None, 1)]
    rows = [
        {
            "lq": cell(encode_png(image(0))),
            "jpg_0": cell(encode_png(image(2 * k + 1))),
            "jpg_1": cell(encode_png(image(2 * k + 2))),
            "label_0": first,
            "label_1": second,
        }
        for k, (first, second) in enumerate(labels)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "pairs.parquet")
    done = import_pairs(tmp_path / "pairs.parquet", tmp_path / "store", "public")
    assert sorted(row.choice for row in read(tmp_path / "store").judgements) == ["a", "b", "tie"]
    assert [row.name[-1] for row in done.rejected] == ["3", "4"]
    assert "sum to one" in done.rejected[0].reason


def test_base64_in_csv_and_paths_that_escape(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(encode_png(image(7)))
    text = [base64.b64encode(encode_png(image(k))).decode() for k in range(3)]
    small = base64.b64encode(encode_png(cv2.resize(image(1), (16, 16)))).decode()
    rows = [(*text,), (text[0], text[1], "../secret.png"), (text[0], text[1], small), (text[0], text[1], "")]
    pd.DataFrame(rows, columns=["lq", "chosen", "rejected"]).to_csv(inside / "pairs.csv", index=False)
    done = import_pairs(inside / "pairs.csv", tmp_path / "store", "public")
    assert done.judgements == 1
    reasons = " | ".join(row.reason for row in done.rejected)
    for part in ("outside the folder", "differ in size", "no image in the cell"):
        assert part in reasons


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is none of"),
        ("a.jsonl", b"{", "cannot be read"),
        ("a.jsonl", b"[1]\n", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv", b"lq,chosen\nx,y\n", "chosen and rejected"),
        ("a.csv", b"jpg_0,jpg_1,lq\nx,y,z\n", "label_0"),
        ("a.csv", b"chosen,rejected\nx,y\n", "degraded image is missing"),
        ("a.csv", b"", "cannot be read"),
    ],
)
def test_files_that_are_no_pair_data_are_the_users_mistake(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_pairs(tmp_path / name, tmp_path / "store", "public")
    assert not (tmp_path / "store").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.lists(st.integers()), st.booleans()))
def test_any_cell_is_an_image_or_named(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"lq": value, "chosen": value, "rejected": value}) + "\n")
    done = import_pairs(file, tmp_path / "store", "public")
    assert done.judgements == 0
    assert done.rejected[0].reason


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_commands(chosen: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "2 judgements imported, 1 rows set aside" in run("import", chosen, "--store", store).output
    figures = json.loads(run("stats", store, "--json").output)
    assert (figures["judgements"], figures["valid"], figures["sources"]) == (2, 2, {"import": 2})
    assert "2 valid of 2 judgements on 2 pairs in 1 shards" in run("stats", store).output
    assert "0 shards merged, 1 left" in run("compact", store).output
    assert run("validate", store).exit_code == 0
    shard = next(store.glob("preferences/dt=*/part-*.parquet"))
    (shard.parent / "part-0.parquet").write_bytes(b"damaged")
    failed = run("validate", store)
    assert isinstance(failed.exception, UserError)
    assert "FAILED every shard and row can be read" in failed.output
    assert "part-0.parquet" in failed.output
