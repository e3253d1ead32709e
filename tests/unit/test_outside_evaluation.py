"""Evaluation outside the graph: what photographs become, and which evaluations may be compared."""

from __future__ import annotations

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
from prefrestore.evaluation.outside import Freezing, compare_runs, frozen_pairs
from prefrestore.evaluation.significance import Resampling
from prefrestore.evaluation.table import PER_SAMPLE

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
