"""Evaluation outside the graph: what photographs become, and which evaluations may be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage.data import astronaut

from prefrestore.commands import compare as compare_command
from prefrestore.commands import evaluate as evaluate_command
from prefrestore.data.recipes import recipe_named
from prefrestore.errors import UserError
from prefrestore.evaluation.columns import Column
from prefrestore.evaluation.measure import measure
from prefrestore.evaluation.outside import Freezing, compare_runs, digest_of, frozen_pairs
from prefrestore.evaluation.significance import Resampling
from prefrestore.evaluation.table import PER_SAMPLE
from prefrestore.rewards.composite import CompositeReward, Part
from prefrestore.rewards.faces import FaceReader
from prefrestore.rewards.structure import StructureReward

PRESET = Path(__file__).parents[2] / "presets" / "smoke.yaml"
HOW = Freezing(32, recipe_named("pref_restore_mild"), seed=0, workers=1)
RESAMPLING = Resampling(0.95, 200, 0)


def run_of(folder: Path, gain: float, *, lq: float = 20.0, faces: int = 12) -> Path:
    """Write an evaluation whose aligned model has a PSNR of 25 + ``gain`` dB, give or take 0.1."""
    folder.mkdir()
    rng = np.random.default_rng(int(1000 * gain) % 97)
    base = 20 + np.arange(faces)
    columns = {"lq": base + lq, "policy": base + 25 + gain + rng.normal(0, 0.1, faces)}
    rows = [
        {"column": name, "id": f"{face:02}", "sample": 0, "psnr": value}
        for name, values in columns.items()
        for face, value in enumerate(values)
    ]
    pd.DataFrame(rows).to_parquet(folder / PER_SAMPLE)
    return folder


def test_the_second_run_is_the_candidate(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", 0.0), run_of(tmp_path / "b", 0.5)
    assert [row.outcome for row in compare_runs(first, second, {}, RESAMPLING)] == ["better"]
    assert [row.outcome for row in compare_runs(second, first, {}, RESAMPLING)] == ["worse"]
    assert [row.outcome for row in compare_runs(first, first, {}, RESAMPLING)] == ["not worse"]


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    first = run_of(tmp_path / "a", 0.0)
    with pytest.raises(UserError, match="other faces"):
        compare_runs(first, run_of(tmp_path / "b", 0.0, faces=11), {}, RESAMPLING)
    with pytest.raises(UserError, match="degrade the same faces differently"):
        compare_runs(first, run_of(tmp_path / "c", 0.0, lq=21.0), {}, RESAMPLING)
    with pytest.raises(UserError, match="holds no evaluation"):
        compare_runs(first, tmp_path, {}, RESAMPLING)


def test_compare_prints_a_table(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", 0.0), run_of(tmp_path / "b", 0.5)
    done = CliRunner().invoke(compare_command.command, [str(first), str(second), "--config", str(PRESET)])
    assert done.exit_code == 0, done.output
    header, row = done.output.splitlines()
    assert header.split() == ["metric", "first", "second", "gain", "interval", "outcome", "faces"]
    assert row.split()[0] == "PSNR"
    assert "better" in row


def test_photographs_become_frozen_pairs_and_the_rest_is_counted(tmp_path: Path) -> None:
    portrait = Image.fromarray(astronaut()[:256, 96:352])
    portrait.save(tmp_path / "same.png")
    portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "same.jpg")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "night.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    pairs, counts = frozen_pairs(tmp_path, HOW)
    again, _ = frozen_pairs(tmp_path, HOW)
    assert len(set(pairs.ids)) == 2  # two files of one stem are two faces
    assert pairs.lq.shape == (2, 1, 32, 32, 3)
    np.testing.assert_array_equal(pairs.lq, again.lq)
    assert np.isfinite(pairs.landmarks).all()
    assert (counts["eval"], counts["rejected"]) == (2, 2)
    assert "no face found" in counts["reasons"]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Two LQ/HQ pairs of 32 px made elsewhere, and an HQ that nobody needs; only the first HQ shows a face."""
    for name in ("lq", "hq"):
        (tmp_path / name).mkdir()
    portrait = Image.fromarray(astronaut()[:256, 96:352]).resize((32, 32), Image.Resampling.BOX)
    for stem, picture in (("a", portrait), ("b", Image.new("RGB", (32, 32), "grey"))):
        picture.save(tmp_path / "hq" / f"{stem}.png")
        picture.resize((8, 8)).resize((32, 32)).save(tmp_path / "lq" / f"{stem}.bmp")
    portrait.save(tmp_path / "hq" / "c.png")
    return tmp_path


def test_pairs_made_elsewhere_are_taken_as_they_are(given: Path) -> None:
    pairs, counts = frozen_pairs(given, HOW)
    assert (pairs.ids, counts["eval"], counts["rejected"]) == (("a", "b"), 2, 0)
    for row, stem in enumerate(pairs.ids):
        np.testing.assert_array_equal(pairs.hq[row], np.asarray(Image.open(given / "hq" / f"{stem}.png")))
        np.testing.assert_array_equal(pairs.lq[row, 0], np.asarray(Image.open(given / "lq" / f"{stem}.bmp")))
    assert np.isnan(pairs.landmarks[1]).all()
    assert digest_of(pairs) == digest_of(frozen_pairs(given, HOW)[0])
    assert digest_of(pairs) != digest_of(replace(pairs, lq=pairs.lq[::-1]))


def test_nobody_recorded_how_they_were_degraded(given: Path) -> None:
    """So whether a result fits the LQ cannot be told: NaN, not the PSNR against it."""
    pairs, _ = frozen_pairs(given, HOW)
    reader = FaceReader(1)
    with CompositeReward([StructureReward()], {"structure": Part(1.0, 0.5, 0.1)}, reader) as reward:
        samples = measure([Column("lq", pairs.lq[None, :, 0])], pairs, reward).samples
    assert samples["lq_consistency"].isna().all()
    assert samples["psnr"].notna().all()
    assert samples.set_index("id")["landmark_distance"].notna().tolist() == [
        bool(np.isfinite(pairs.landmarks[0]).all()),
        False,
    ]


def test_pictures_that_stand_in_two_columns_are_measured_once(given: Path) -> None:
    """As where alignment kept the base; and what a set measures does not depend on what was measured before it."""
    pairs, _ = frozen_pairs(given, HOW)
    noise = np.random.default_rng(0).integers(0, 256, (2, *pairs.hq.shape), np.uint8)
    tables = {}
    for names in (("base", "policy"), ("policy",)):
        with CompositeReward([StructureReward()], {"structure": Part(1.0, 0.5, 0.1)}, FaceReader(1)) as reward:
            found = measure([Column(name, noise) for name in names], pairs, reward)
            assert reward.reader.analysed == len(pairs.ids) * (1 + 2)  # HQ, and two samples
        rows = found.samples.drop(columns="column")
        tables[names] = [rows[found.samples["column"] == name].reset_index(drop=True) for name in names]
    base, policy = tables["base", "policy"]
    pd.testing.assert_frame_equal(base, policy)
    pd.testing.assert_frame_equal(policy, tables[("policy",)][0])


def test_pairs_that_do_not_match_are_the_users_mistake(given: Path) -> None:
    (given / "lq" / "a.bmp").rename(given / "lq" / "other.bmp")
    with pytest.raises(UserError, match=r"1 of 2 pictures in lq/ have no reference .* \(first: other\)"):
        frozen_pairs(given, HOW)
    Image.new("RGB", (32, 32)).save(given / "hq" / "other.png")
    Image.new("RGB", (32, 48)).save(given / "lq" / "other.bmp")
    with pytest.raises(UserError, match=r"other\.bmp: has 32 x 48 px, the model restores 32 x 32"):
        frozen_pairs(given, HOW)
    Image.new("RGB", (32, 32)).save(given / "lq" / "other.png")
    with pytest.raises(UserError, match=r"2 files are called other \(other\.bmp, other\.png\)"):
        frozen_pairs(given, HOW)


def test_pairs_that_cannot_be_read_are_counted_and_an_empty_set_is_refused(given: Path) -> None:
    (given / "lq" / "b.bmp").write_bytes(b"no image")
    pairs, counts = frozen_pairs(given, HOW)
    assert (pairs.ids, counts["reasons"]) == (("a",), {"not an image of a known format": 1})
    (given / "lq" / "a.bmp").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 2 pairs can be read"):
        frozen_pairs(given, HOW)
    for path in (given / "lq").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no image files"):
        frozen_pairs(given, HOW)


def test_a_folder_without_faces_is_the_users_mistake(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "night.png")
    with pytest.raises(UserError, match="no face to evaluate"):
        frozen_pairs(tmp_path, HOW)


@pytest.mark.parametrize(
    ("model", "message"),
    [("models:/x", "no registry address"), ("nowhere", "is no folder")],
)
def test_a_wrong_model_is_one_clear_line(tmp_path: Path, model: str, message: str) -> None:
    arguments = ["--model", model, "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--config", str(PRESET)]
    done = CliRunner().invoke(evaluate_command.command, arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
