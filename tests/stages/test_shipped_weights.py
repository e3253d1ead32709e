"""Weights that ship: written small, checked when they are loaded, used by program and library where none is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from skimage import data

import prefrestore
from prefrestore import artifacts, dvcfile
from prefrestore.commands import model as model_command
from prefrestore.commands import restore as restore_command
from prefrestore.errors import UserError
from prefrestore.evaluation.summary import metric_table
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.registry import shipped
from prefrestore.registry.loader import load, locate, resolve
from support.restorers import SIZE, small_model


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base and policy."""
    return small_model(repository, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    estimate = {"mean": 21.5, "std": 1.0, "n": 50, "nan": 0, "low": 20.5, "high": 22.5}
    artifacts.write_json(folder / "metrics.json", {"columns": {"policy": {"psnr": estimate}}})
    artifacts.write_json(folder / "metric_table.json", metric_table())
    curve = {"calibration": {"spread": [0.0, 1.0], "error": [0.0, 3.0]}, "reliability": {}}
    artifacts.write_json(folder / "uncertainty.json", {"policy": curve})
    return folder


@pytest.fixture(scope="module")
def written(made: Path, metrics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `model ship` writes."""
    out = tmp_path_factory.mktemp("shipped") / "portrait"
    done = _ship(made, "--metrics", metrics, "--out", out)
    assert done.exit_code == 0, done.output
    assert "MB, release" in done.output
    return out


@pytest.fixture
def portrait(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's weights: a copy of those."""
    folder = Path(shutil.copytree(written, tmp_path / "weights"))
    monkeypatch.setattr(shipped, "SHIPPED", folder)
    return folder


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "person.png"
    Image.fromarray(cv2.GaussianBlur(np.ascontiguousarray(data.astronaut()), (0, 0), 4)).save(path)
    return path


def _ship(made: Path, *options: str | Path) -> Result:
    folders = ("--base", made / "base", "--policy", made / "policy")
    return CliRunner().invoke(model_command.command, ["ship", *map(str, (*folders, *options))])


def _restore(*values: str | Path) -> Result:
    return CliRunner().invoke(restore_command.command, [*map(str, values)])


def test_what_is_written_is_half_as_large_and_says_what_it_is(made: Path, written: Path) -> None:
    for name in ("base/generator/diffusion_pytorch_model", "policy/adapter_model"):
        whole, half = (load_file(folder / f"{name}.safetensors") for folder in (made, written))
        assert {value.dtype for value in half.values()} == {torch.float16}
        assert whole.keys() == half.keys()
        assert all(torch.equal(whole[key].half(), half[key]) for key in whole)
    card = (written / "README.md").read_text(encoding="utf-8")
    assert "public-domain portraits" in card
    assert "21.50 (20.50 to 22.50)" in card
    assert "50 faces held out" in card
    assert (written / "metrics" / "uncertainty.json").is_file()


def test_shipping_again_writes_the_same_bytes(made: Path, written: Path, metrics: Path, tmp_path: Path) -> None:
    again = _ship(made, "--metrics", metrics, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert artifacts.digest(tmp_path / "again") == artifacts.digest(written)


def test_steps_are_the_pipelines_own_where_none_are_named(made: Path, tmp_path: Path) -> None:
    own = PrefRestorePipeline.from_pretrained(made / "base").sampler_steps
    for options, expected in (((), own), (("--steps", str(own + 1)), own + 1)):
        assert _ship(made, *options, "--out", tmp_path / f"{expected}").exit_code == 0
        assert PrefRestorePipeline.from_pretrained(tmp_path / f"{expected}" / "base").sampler_steps == expected


def test_restore_takes_them_where_no_model_is_named(portrait: Path, photograph: Path, tmp_path: Path) -> None:
    for name, model in (("default.png", ()), ("named.png", ("--model", portrait))):
        done = _restore(photograph, "-o", tmp_path / name, "--steps", 2, *model)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "default.png").read_bytes() == (tmp_path / "named.png").read_bytes()
    before, after = (np.asarray(Image.open(path)) for path in (photograph, tmp_path / "default.png"))
    assert 1000 < (before != after).any(2).sum() < before[..., 0].size // 2


def test_they_compute_in_float32_and_restore_as_what_they_were_made_of(made: Path, written: Path) -> None:
    whole, half = (load(locate(resolve(str(folder), ""))) for folder in (made, written))
    assert {value.dtype for module in (half.integrator, half.generator) for value in module.parameters()} == {
        torch.float32
    }
    face = Image.fromarray(cv2.resize(data.astronaut()[50:200, 150:300], (SIZE, SIZE)))
    pictures = [np.asarray(one(face, num_inference_steps=2).images[0]).astype(int) for one in (whole, half)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


@pytest.mark.parametrize("name", ["base/generator/diffusion_pytorch_model.safetensors", "README.md", "added.json"])
def test_a_changed_or_added_file_is_refused(portrait: Path, photograph: Path, tmp_path: Path, name: str) -> None:
    path = portrait / name
    data = bytearray(path.read_bytes() if path.exists() else b"{}")
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    done = _restore(photograph, "-o", tmp_path / "out.png")
    assert isinstance(done.exception, UserError)
    assert name in str(done.exception)
    assert not (tmp_path / "out.png").exists()


def test_without_them_one_line_says_what_to_do(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "none")
    done = _restore(photograph, "-o", tmp_path / "out.png")
    assert isinstance(done.exception, UserError)
    assert "--model" in str(done.exception)
    assert "prefrestore model ship" in str(done.exception)
    assert "\n" not in str(done.exception)


def test_what_cannot_ship_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*options: str | Path) -> str:
        done = _ship(made, *options)
        assert isinstance(done.exception, UserError), done.output
        return str(done.exception)

    (tmp_path / "mine").mkdir()
    assert "holds no release" in refused("--out", tmp_path / "mine")
    assert "is no folder" in refused("--out", tmp_path / "new", "--policy", tmp_path / "nowhere")
    assert "uncertainty.json is missing" in refused("--out", tmp_path / "new", "--calibration", tmp_path)
    assert "metrics.json: is missing" in refused("--out", tmp_path / "new", "--metrics", tmp_path)
    other = shutil.copytree(made / "base", tmp_path / "other")
    (other / "note.txt").write_text("another base")
    assert "trained on another base" in refused("--out", tmp_path / "new", "--base", other)
    monkeypatch.setattr(shipped, "MAX_BYTES", 100_000)
    assert "MB in half precision with its adapter" in refused("--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_weight_beyond_half_precision_is_refused() -> None:
    with pytest.raises(UserError, match="generator.x: a weight is not finite"):
        shipped._half("generator.x", torch.tensor([1.0, 7e4]))


def test_the_library_restores_as_the_program_does(portrait: Path, photograph: Path, tmp_path: Path) -> None:
    assert _restore(photograph, "-o", tmp_path / "a.png", "--steps", 2).exit_code == 0
    restored = prefrestore.restore(photograph, steps=2)
    restored.save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert [face.left_alone for face in restored.faces] == [None]
    with Image.open(photograph) as picture:
        assert prefrestore.restore(picture, steps=2).image.tobytes() == restored.image.tobytes()
    for wrong in ({"fidelity": 2}, {"samples": 1, "fidelity": 0.5}, {"model": portrait / "base"}, {"device": "no"}):
        with pytest.raises(UserError):
            prefrestore.restore(photograph, **wrong)
    with pytest.raises(UserError, match="not an image of a known format"):
        prefrestore.restore(b"no picture")


def test_the_pipeline_takes_the_same_weights(portrait: Path) -> None:
    folder = prefrestore.shipped_weights()
    assert folder == portrait
    pipeline = prefrestore.PrefRestorePipeline.from_pretrained(folder / "base")
    assert pipeline.integrator.dtype == torch.float32
    pipeline.load_lora_weights(folder / "policy")
    face = Image.fromarray(data.astronaut()[50:200, 150:300])
    picture = pipeline(face, seed=1, num_inference_steps=2).images[0]
    expected = load(locate(resolve(str(folder), "")))(face, seed=1, num_inference_steps=2).images[0]
    assert picture.tobytes() == expected.tobytes()
    assert isinstance(pipeline, PrefRestorePipeline)


def test_importing_the_package_loads_no_torch() -> None:
    probe = "import sys, prefrestore; assert 'torch' not in sys.modules; assert not hasattr(prefrestore, 'nothing')"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_no_stage_depends_on_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on what the package offers to programs nor on weights whose files are called as an artifact's are."""
    assert [name for row in dvcfile.STAGES.values() for name in dvcfile.code(row) if "/serving/" in name] == []
    module = tmp_path / "module.py"
    module.write_text('NAME = "manifest.json"', encoding="utf-8")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "manifest.json").write_text("{}", encoding="utf-8")
    assert dvcfile._data_files(module) == {tmp_path / "weights" / "manifest.json"}
    monkeypatch.setattr(dvcfile, "WEIGHTS", tmp_path / "weights")
    assert dvcfile._data_files(module) == set()


def test_the_wheel_holds_them(repository: Path, portrait: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("src", "components", "pipelines"):
        shutil.copytree(repository / name, project / name, ignore=shutil.ignore_patterns("weights", "*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(repository / name, project)
    shutil.copytree(portrait, project / "src" / "prefrestore" / "weights" / "portrait")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, project]
    subprocess.run([str(part) for part in build], check=True)
    (wheel,) = tmp_path.glob("prefrestore-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("prefrestore/weights/")}
    files = {path.relative_to(portrait).as_posix() for path in portrait.rglob("*") if path.is_file()}
    assert inside == {f"prefrestore/weights/portrait/{name}" for name in files}
