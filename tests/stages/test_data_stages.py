"""Ingest, degrade and validate as stages: whole outputs, byte-equal however the work is cut, or one clear line."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data as skimage_data

from prefrestore import artifacts, configfile
from prefrestore.commands.degrade import command as degrade_command
from prefrestore.config import Config
from prefrestore.data.degradation import degrade
from prefrestore.data.expectations import run_checks
from prefrestore.data.images import encode_png
from prefrestore.data.pairing import merge_pairs
from prefrestore.data.pairs import load_faces, load_pairs, to_tensor, to_uint8
from prefrestore.data.tables import REJECTED_SCHEMA, Rejection, write_rows, write_shards
from prefrestore.data.validation import checks_of, drift_checks, drift_table, statistics, tables_of
from prefrestore.errors import UserError
from prefrestore.faces import extraction
from prefrestore.stage import STAGES, execute

NUM_TRAIN, NUM_EVAL = 20, 6
Program = Callable[..., subprocess.CompletedProcess[str]]
MANY = 70  # enough for a pool of processes to start


@pytest.fixture(scope="module")
def base(repository: Path) -> Config:
    return configfile.load(repository / "presets" / "smoke.yaml")


def run(base: Config, stage: str, paths: Mapping[str, Path], **changes: Any) -> Path:
    name = "validate_" if stage == "validate" else stage
    section = getattr(base, name).model_copy(update=changes)
    execute(STAGES[stage], section, paths)
    return paths[STAGES[stage].outputs[0]]


@pytest.fixture(scope="module")
def faces(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingest") / "faces"
    return run(base, "ingest", {"faces": folder}, num_train=NUM_TRAIN, num_eval=NUM_EVAL, shard_rows=8)


@pytest.fixture(scope="module")
def pairs(base: Config, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("degrade") / "pairs"
    return run(base, "degrade", {"faces": faces, "pairs": folder})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != artifacts.MANIFEST}


# --- loading --------------------------------------------------------------------------------------


def test_loaded_faces_and_pairs_keep_the_contract(faces: Path, pairs: Path) -> None:
    training, held_out = load_pairs(pairs, "train"), load_pairs(pairs, "eval")
    assert training.hq.shape == (NUM_TRAIN, 32, 32, 3)
    assert training.lq.shape == (NUM_TRAIN, 2, 32, 32, 3)
    assert held_out.lq.shape == (NUM_EVAL, 1, 32, 32, 3)
    assert list(training.ids) == sorted(training.ids)
    assert not set(training.ids) & set(held_out.ids)
    assert training.landmarks.shape == (NUM_TRAIN, 68, 2)
    assert np.isfinite(training.landmarks).all()
    assert all(training.captions)
    loaded = load_faces(faces, "train")
    np.testing.assert_array_equal(loaded.images, training.hq)
    tensor = to_tensor(training.lq)
    assert tensor.shape == (NUM_TRAIN, 2, 3, 32, 32)
    np.testing.assert_array_equal(to_uint8(tensor), training.lq)


def test_stored_records_replay_to_the_stored_pixels(pairs: Path) -> None:
    for split in ("train", "eval"):
        found = load_pairs(pairs, split)  # type: ignore[arg-type]
        for hq, images, records in zip(found.hq, found.lq, found.records, strict=True):
            for image, record in zip(images, records, strict=True):
                np.testing.assert_array_equal(degrade(hq, record), image)


def test_unknown_landmarks_are_nan_and_an_empty_split_is_told(base: Config, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(6):
        save(source / ("val" if number < 2 else "train") / f"{number}.png", seed=number)
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **aligned(source))
    assert np.isnan(load_faces(folder, "eval").landmarks).all()
    path = folder / "faces-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter([value == "train" for value in table["split"].to_pylist()]), path)
    with pytest.raises(UserError, match="no faces of split eval"):
        load_faces(folder, "eval")


# --- the same bytes however the work is cut -------------------------------------------------------


def test_drawn_portraits_join_the_training_faces_alone(base: Config, tmp_path: Path) -> None:
    """Photographs keep both splits; portraits come with caption, exact landmarks and their own licence."""
    source = tmp_path / "source"
    save(source / "train" / "a.png", 1)
    save(source / "val" / "b.png", 2)
    wanted = aligned(source, drawn=3, num_train=1, licence="CC-BY-4.0")
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **wanted)
    rows = {
        row["id"]: row for path in sorted(folder.glob("faces-*.parquet")) for row in pq.read_table(path).to_pylist()
    }
    drawn = [row for row in rows.values() if row["id"].startswith("portraits-")]
    assert [row["id"] for row in drawn] == [f"portraits-{index:06d}" for index in range(3)]
    assert all(row["caption"] and row["split"] == "train" and row["licence"] == "CC0-1.0" for row in drawn)
    assert not np.isnan(load_faces(folder, "train").landmarks[:3]).any()
    assert {row["split"]: row["licence"] for row in rows.values() if row not in drawn} == {
        "train": "CC-BY-4.0",
        "eval": "CC-BY-4.0",
    }
    assert artifacts.read_json(folder / "counts.json")["train"] == 4


def test_any_number_of_processes_makes_the_same_bytes(base: Config, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(MANY):
        save(source / ("val" if number % 9 == 0 else "train") / f"{number:02d}.png", number, size=32)
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        few = aligned(source, num_train=MANY // 2, workers=workers, shard_rows=20)  # workers look further than this
        faces = run(base, "ingest", {"faces": folder / "faces"}, **few)
        pairs = run(base, "degrade", {"faces": faces, "pairs": folder / "pairs"}, workers=workers)
        made.append(contents(faces) | contents(pairs))
    assert len(made[0]) > 8
    assert made[0] == made[1]


def test_parts_merge_to_the_whole(base: Config, faces: Path, pairs: Path, tmp_path: Path) -> None:
    parts = [
        run(base, "degrade", {"faces": faces, "pairs": tmp_path / f"part{index}"}, shard_index=index, shard_count=3)
        for index in range(3)
    ]
    with artifacts.replacing(tmp_path / "pairs") as folder:
        artifacts.write_manifest(folder, merge_pairs(parts[::-1], folder))
    assert contents(tmp_path / "pairs") == contents(pairs)
    assert artifacts.digest(tmp_path / "pairs") == artifacts.digest(pairs)
    for wrong in (parts[:2], [*parts, parts[0]]):
        with pytest.raises(UserError, match="give each part of one run exactly once"):
            merge_pairs(wrong, tmp_path / "nowhere")
    other = run(base, "degrade", {"faces": faces, "pairs": tmp_path / "other"}, shard_index=2, shard_count=3, seed=9)
    with pytest.raises(UserError, match="other faces or by another configuration"):
        merge_pairs([*parts[:2], other], tmp_path / "nowhere")


def test_parts_made_and_merged_by_the_program_are_the_whole(
    base: Config, faces: Path, pairs: Path, tmp_path: Path, program: Program
) -> None:
    for index in (1, 0):  # the order of work does not matter
        section = base.degrade.model_copy(update={"shard_index": index, "shard_count": 2}).model_dump_json()
        ports = ["--faces", faces, "--pairs", tmp_path / f"part{index}"]
        done = program("stage", "degrade", "--section", section, *ports, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = program("merge", "part1", "part0", "--output", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert artifacts.digest(tmp_path / "whole") == artifacts.digest(pairs)


def test_tables_are_written_as_they_come_and_bytes_do_not_tell(tmp_path: Path) -> None:
    """Shards hold the rows they should; a table's bytes are the same from a list and from a generator."""
    rows = [Rejection(f"{number:04d}", "x" * (number % 7)) for number in range(150)]
    write_rows(tmp_path / "list.parquet", REJECTED_SCHEMA, rows)
    written = []

    def watched() -> Iterator[Rejection]:
        for number, row in enumerate(rows):
            written.append((tmp_path / "lazy.parquet").stat().st_size if number == 149 else 0)
            yield row

    write_rows(tmp_path / "lazy.parquet", REJECTED_SCHEMA, watched())
    assert (tmp_path / "lazy.parquet").read_bytes() == (tmp_path / "list.parquet").read_bytes()
    assert written[-1] > 100  # groups were on disk before the last row was asked for
    write_shards(tmp_path, "part", REJECTED_SCHEMA, iter(rows), 70)  # type: ignore[arg-type]
    paths = sorted(tmp_path.glob("part-*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in paths] == [70, 70, 10]
    assert [name for path in paths for name in pd.read_parquet(path)["name"]] == [row.name for row in rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "mud"}, "recipe 'mud' is unknown"),
        ({"shard_index": 2, "shard_count": 2}, "count parts from 0"),
        ({"shard_count": 99}, "99 parts of 4 shards"),
    ],
)
def test_wrong_degrade_settings_leave_nothing(
    base: Config, faces: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(base, "degrade", {"faces": faces, "pairs": tmp_path / "pairs"}, **changes)
    assert list(tmp_path.iterdir()) == []


# --- hostile files --------------------------------------------------------------------------------


def save(path: Path, seed: int = 0, size: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size, size)).save(path)
    return path


def aligned(uri: Path, **changes: Any) -> dict[str, Any]:
    return {"source": "folder", "uri": str(uri), "aligned": True, "num_train": 0, "num_eval": 0, **changes}


def hostile_folder(root: Path) -> dict[str, str]:
    """Fill a folder with trouble; return what must become of each file ("" for taken)."""
    for number in range(4):
        save(root / "val" / f"good{number}.png", seed=90 + number)
    folder = root / "train"
    jpeg = save(folder / "plain.jpg", 1).read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    ramp = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "sixteen.png")
    Image.open(save(folder / "rgb.png", 2)).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "rgb.png").unlink()
    palette = Image.open(save(folder / "full.png", 3)).convert("P")
    (folder / "full.png").unlink()
    palette.save(folder / "palette.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(save(folder / "turned.png", 4)).save(folder / "turned.png", exif=exif)
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")
    (folder / "text.png").write_text("not a picture")
    save(root.parent / "secret.png", 5)
    (folder / "link.png").symlink_to(root.parent / "secret.png")
    save(folder / "twin.png", 6)
    save(folder / "twin.bmp", 7)
    (folder / "copy.jpg").write_bytes(jpeg)
    save(folder / "été 日本 🙂.png", 8)
    save(folder / "locked.png", 9)
    return {
        "plain.jpg": "copy of another image",  # "copy" comes first in the order of ids
        "copy.jpg": "",
        "truncated.jpg": "damaged (OSError)",
        "sixteen.png": "",
        "cmyk.jpg": "",
        "palette.png": "",
        "turned.png": "",
        "animated.gif": "several frames",
        "one.png": "smaller than 16 px",
        "bomb.png": "too many pixels",
        "text.png": "not an image of a known format",
        "link.png": "link out of the folder",
        "twin.png": "",
        "twin.bmp": "",
        "été 日本 🙂.png": "",
        "locked.png": "cannot be read (Permission denied)",
    }


def test_hostile_files_are_taken_rightly_or_set_aside_with_a_reason(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fate = hostile_folder(tmp_path / "source")
    lock(tmp_path / "source" / "train" / "locked.png", monkeypatch)
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **aligned(tmp_path / "source"))
    counts = json.loads((folder / "counts.json").read_text())
    reasons = [reason for reason in fate.values() if reason]
    assert counts["train"] + counts["eval"] + counts["rejected"] == len(fate) + 4
    assert counts["rejected"] == len(reasons)
    assert counts["reasons"] == {reason: reasons.count(reason) for reason in reasons}
    rejected = pd.read_parquet(folder / "rejected.parquet")
    told = {Path(name).name.removeprefix("train-"): reason for name, reason in rejected.itertuples(index=False)}
    assert told.pop("plain") == fate.pop("plain.jpg")
    assert told == {name: reason for name, reason in fate.items() if reason}


def test_degrade_command_tells_what_became_of_every_hostile_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fate = hostile_folder(tmp_path / "source")
    lock(tmp_path / "source" / "train" / "locked.png", monkeypatch)
    arguments = [str(tmp_path / "source"), str(tmp_path / "lq")]
    done = CliRunner().invoke(degrade_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    bad = {name: reason for name, reason in fate.items() if reason and "copy" not in reason}
    told = {line for line in done.stderr.splitlines() if line.startswith("set aside")}
    assert told == {f"set aside: train/{name}: {reason}" for name, reason in bad.items()}
    assert len(list((tmp_path / "lq").rglob("*.png"))) == len(list((tmp_path / "lq").rglob("*.json")))
    assert len(list((tmp_path / "lq").rglob("*.png"))) == len(fate) - len(bad) + 4
    assert f"{len(bad)} set aside" in done.stdout


def lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the right to read; for root, who may read everything, pretend."""
    path.chmod(0)
    if os.geteuid() != 0:
        return
    real = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_a_folder_without_a_face_is_one_line_and_leaves_nothing(base: Config, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "source" / f"{number}.png", number)
    with pytest.raises(UserError, match=r"gives no train and no eval faces \(3 x no face found\)"):
        run(base, "ingest", {"faces": tmp_path / "faces"}, **aligned(tmp_path / "source", aligned=False))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_photograph_gives_an_upright_aligned_face(base: Config, tmp_path: Path) -> None:
    photograph = Image.fromarray(skimage_data.astronaut())
    for split in ("train", "val"):
        (tmp_path / "source" / split).mkdir(parents=True)
    photograph.save(tmp_path / "source" / "train" / "photo.png")
    photograph.rotate(20, resample=Image.Resampling.BICUBIC).save(tmp_path / "source" / "val" / "turned.png")
    settings = aligned(tmp_path / "source", aligned=False, image_size=64)
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **settings)
    for split in ("train", "eval"):
        landmarks = load_faces(folder, split).landmarks[0]  # type: ignore[arg-type]
        eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
        assert abs(eyes[0][1] - eyes[1][1]) < 1.5  # level
        assert 22 < (eyes[0][0] + eyes[1][0]) / 2 < 42
        assert 24 < (eyes[0][1] + eyes[1][1]) / 2 < 34
        assert landmarks[48:68, 1].mean() > eyes[0][1] + 10


def test_persons_stay_on_one_side(base: Config, tmp_path: Path) -> None:
    for person in range(12):
        for shot in range(2):
            save(tmp_path / "source" / f"person{person}" / f"{shot}.png", 10 * person + shot)
    settings = aligned(tmp_path / "source", split="identity", eval_share=0.4)
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **settings)
    table = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("faces-*.parquet"))])
    assert (table.groupby("identity")["split"].nunique() == 1).all()
    assert set(table["split"]) == {"train", "eval"}


# --- validation -----------------------------------------------------------------------------------


def test_report_is_one_file_and_always_the_same(base: Config, pairs: Path, tmp_path: Path) -> None:
    once, again = (run(base, "validate", {"pairs": pairs, "data_report": tmp_path / name}) for name in ("a", "b"))
    assert contents(once) == contents(again)
    page = (once / "data_report.html").read_text()
    assert "http" not in page
    assert "src=" not in page
    assert "href=" not in page
    assert json.loads((once / "results.json").read_text())["success"] is True
    assert "width=device-width" in page
    assert f"{NUM_TRAIN} training and {NUM_EVAL} evaluation faces" in page


def test_too_few_faces_stop_the_graph_by_name(base: Config, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expectation failed: 999 evaluation faces or more"):
        run(base, "validate", {"pairs": pairs, "data_report": tmp_path / "report"}, min_eval=999)
    assert list(tmp_path.iterdir()) == []


def failures(tables: dict[str, pd.DataFrame], base: Config) -> dict[str, tuple[str, ...]]:
    outcomes = run_checks(tables, checks_of(tables, base.validate_))
    return {outcome.name: outcome.rows for outcome in outcomes if not outcome.success}


def test_each_fault_is_found_with_its_rows(base: Config, pairs: Path) -> None:
    tables = tables_of(pairs)
    assert failures(tables, base) == {}
    recipe = next(name for name in tables if name.startswith("pref_restore"))
    faces = tables["faces"]
    faces.loc[3, "sha256"] = faces.loc[4, "sha256"]
    faces.loc[5, "leak_distance"] = 2
    faces.loc[6, "licence"] = None
    faces.loc[7, "identity_splits"] = 2
    faces.loc[8, "landmarks"] = 5
    tables[recipe].loc[0, "blur.sigma_x"] = 99.0
    tables["source"].loc[0, "share"] = 0.9
    tables["LQ images"] = pd.concat([tables["LQ images"], tables["LQ images"].iloc[[0]]], ignore_index=True)
    found = failures(tables, base)
    assert set(found) == {
        "no two faces have the same pixels",
        "no near-duplicate stands in both splits",
        "every face has its licence",
        "no person stands in both splits",
        "landmarks are all there or absent",
        "blur.sigma_x is in its range",
        "enough images were usable",
        "no LQ image stands twice",
    }
    assert found["no near-duplicate stands in both splits"] == (f"{faces.loc[5, 'id']} (leak_distance = 2)",)
    assert found["blur.sigma_x is in its range"] == (f"{tables[recipe].loc[0, 'id']} (blur.sigma_x = 99.0)",)
    assert len(found["no two faces have the same pixels"]) == 2


def test_near_duplicates_across_splits_are_found(base: Config, tmp_path: Path) -> None:
    source = tmp_path / "source"
    face = Image.fromarray(skimage_data.astronaut()[0:256, 96:352])
    for split, quality in (("train", 95), ("val", 40)):  # the same photograph, coded twice
        (source / split).mkdir(parents=True)
        face.save(source / split / "a.jpg", quality=quality)
    for number in range(8):
        save(source / "train" / f"{number}.png", number)
        save(source / "val" / f"{number}.png", 100 + number)
    faces = run(base, "ingest", {"faces": tmp_path / "faces"}, **aligned(source))
    pairs = run(base, "degrade", {"faces": faces, "pairs": tmp_path / "pairs"})
    with pytest.raises(UserError, match="no near-duplicate stands in both splits.*train-a.*val-a"):
        run(base, "validate", {"pairs": pairs, "data_report": tmp_path / "report"})


def test_drift_is_measured_against_a_pinned_reference(base: Config, pairs: Path, tmp_path: Path) -> None:
    tables = tables_of(pairs)
    reference = statistics(tables)
    assert drift_table(tables, reference)["distance"].max() == 0
    moved = {**tables, "faces": tables["faces"].assign(sharpness=tables["faces"]["sharpness"] * 3)}
    moved["drift"] = drift_table(moved, reference)
    failed = [row for row in run_checks(moved, drift_checks(base.validate_)) if not row.success]
    assert [row.name for row in failed] == ["no number has drifted"]
    assert failed[0].rows[0].startswith("faces: sharpness (distance = ")
    path = tmp_path / "reference.json"
    path.write_text("{}")
    outputs = {"pairs": pairs, "data_report": tmp_path / "report"}
    with pytest.raises(UserError, match="pin this digest"):
        run(base, "validate", outputs, reference=str(path), reference_digest="0" * 64)
    with pytest.raises(UserError, match="does not exist"):
        run(base, "validate", outputs, reference=str(tmp_path / "no.json"), reference_digest="")


def test_drift_from_the_pinned_reference_stops_the_graph(base: Config, pairs: Path, tmp_path: Path) -> None:
    reference = run(base, "validate", {"pairs": pairs, "data_report": tmp_path / "first"}) / "reference.json"

    def pinned(name: str) -> Path:
        chosen = {"reference": str(reference), "reference_digest": artifacts.file_digest(reference)}
        return run(base, "validate", {"pairs": pairs, "data_report": tmp_path / name}, **chosen)

    found = {row["name"]: row["success"] for row in artifacts.read_json(pinned("same") / "results.json")["outcomes"]}
    assert found["no number has drifted"]
    assert found["every number can be compared"]
    numbers = artifacts.read_json(reference)
    numbers["faces"]["sharpness"] = [3 * value for value in numbers["faces"]["sharpness"]]
    del numbers["faces"]["leak_distance"]
    artifacts.write_json(reference, numbers)
    told = (
        r"failed: every number can be compared.*faces: leak_distance.*"
        "also failed: no number has drifted: mend the data"
    )
    with pytest.raises(UserError, match=told):
        pinned("moved")
    assert not (tmp_path / "moved").exists()


def test_parquet_source_flows_through(base: Config, tmp_path: Path) -> None:
    rows = [
        {"image": (tmp_path / f"{number}.png").read_bytes(), "text": f"face {number}"}
        for number in range(30)
        if save(tmp_path / f"{number}.png", number)
    ]
    rows.append({"image": b"broken", "text": "x"})
    pd.DataFrame(rows).to_parquet(tmp_path / "data.parquet")
    settings = aligned(tmp_path / "data.parquet", source="parquet", split="hash", eval_share=0.3)
    folder = run(base, "ingest", {"faces": tmp_path / "faces"}, **settings)
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["train"] + counts["eval"] == 30
    assert counts["rejected"] == 1
    assert load_faces(folder, "train").captions[0].startswith("face ")


def test_png_bytes_in_tables_are_images(faces: Path) -> None:
    row = pq.read_table(faces / "faces-00000.parquet").to_pylist()[0]
    image = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert encode_png(image) == row["image"]
    assert row["licence"] == "CC0-1.0"
    assert len(row["phash"]) == extraction.HASH_SIDE**2 // 4
