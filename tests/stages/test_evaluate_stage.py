"""Evaluate and gate on real, tiny, untrained networks: columns, files, repeatability, a champion, wrong sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from skimage import data

from prefrestore import artifacts, configfile
from prefrestore.commands import evaluate as evaluate_command
from prefrestore.commands import restore as restore_command
from prefrestore.data.images import decode_png, encode_png, sharpness
from prefrestore.data.pairing import Pairing, make_pairs, write_pairs
from prefrestore.data.pairs import load_pairs, to_tensor
from prefrestore.data.photographs import read_photograph
from prefrestore.data.tables import COUNTS, FACE_SCHEMA, write_rows
from prefrestore.errors import UserError
from prefrestore.evaluation.columns import Sampling, all_columns, champion_columns
from prefrestore.evaluation.restorer import load_calibration, uncertainty_picture
from prefrestore.evaluation.table import PER_SAMPLE
from prefrestore.faces.intake import portrait
from prefrestore.models.adapters import add_roles, role_tensors, save_policy
from prefrestore.models.baseline import RegressionUNet
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.lpips import Lpips, save_lpips
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.rewards.composite import COMPOSITE, Part
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork, save_network
from prefrestore.serving.photo_files import jobs_of
from prefrestore.sft.pretrain import build_pipeline
from prefrestore.stages import evaluate, gate

SIZE, FACES = 32, 4
CAMERA, ORIENTATION = 0x010F, 0x0112
SAMPLING = Sampling(samples=2, steps=2, batch_size=3, seed=0)


@pytest.fixture(scope="module")
def inputs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every artifact that evaluate reads, made in seconds."""
    root = tmp_path_factory.mktemp("inputs")
    folders = {name: root / name for name in ("pairs", "baseline", "base", "policy", "reward", "champion")}
    for folder in folders.values():
        folder.mkdir()
    preset = configfile.load(repository / "presets" / "smoke.yaml")
    _write_pairs(folders["pairs"])
    pairs = load_pairs(folders["pairs"], "eval")
    torch.manual_seed(0)
    codec = build_codec(preset.train_codec).eval()
    start_linear(codec, to_tensor(pairs.hq))
    pipeline = build_pipeline(preset.pretrain, codec, build_tokenizer(preset.train_codec.tokenizer).eval(), pairs)
    with torch.no_grad():  # an untrained generator ends in zeros, and no adapter could be seen through them
        for weight in pipeline.generator.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    pipeline.save_pretrained(folders["base"])
    add_roles(pipeline, preset.align.lora, 0)
    tensors = {name: value + 0.02 for name, value in role_tensors(pipeline, "policy").items()}
    save_policy(folders["policy"], tensors, preset.align.lora, artifacts.digest(folders["base"]))
    RegressionUNet(width=8).save_pretrained(folders["baseline"])
    save_network(PreferenceNetwork(NetworkConfig(width=4, levels=2, members=1, text_size=4)), folders["reward"])
    parts = {name: asdict(Part(1.0, 0.5, 0.1)) for name in ("preference", "structure", "identity")}
    artifacts.write_json(folders["reward"] / COMPOSITE, {"parts": parts})
    artifacts.write_json(folders["champion"] / "champion.json", {"model": None})
    return folders


def _write_pairs(folder: Path) -> None:
    """Four procedural portraits; the last one's landmarks are unknown."""
    faces = [portrait((number, "eval"), SIZE, 0).faces[0] for number in range(FACES)]
    faces[-1] = replace(faces[-1], landmarks=())
    shard = folder / "faces-00000.parquet"
    write_rows(shard, FACE_SCHEMA, faces)
    how = Pairing("pref_restore", "pref_restore", 1, 0)
    write_pairs(shard, folder, [pair for face in faces for pair in make_pairs(face, how)])
    artifacts.write_json(folder / COUNTS, {"train": 0, "eval": FACES, "rejected": 0, "reasons": {}})
    artifacts.write_manifest(folder, artifacts.Manifest("pairs", "degrade", {"recipe": "pref_restore"}, {}))


@pytest.fixture(scope="module")
def outputs(repository: Path, inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of evaluate, in one and in two processes."""
    section = configfile.load(repository / "presets" / "smoke.yaml").evaluate
    torch.manual_seed(1)
    weights = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    save_lpips(Lpips().state_dict(), weights)  # of any value: what is asked is whether they are used alike
    roots = []
    for workers in (1, 2):
        root = tmp_path_factory.mktemp("outputs")
        (root / "metrics").mkdir()
        (root / "report").mkdir()
        changed = section.model_copy(update={"workers": workers, "sampler_steps": 2, "lpips_weights": str(weights)})
        evaluate.run(changed, **inputs, metrics=root / "metrics", report=root / "report")
        roots.append(root)
    return roots


def test_every_column_has_every_metric(outputs: list[Path]) -> None:
    columns = json.loads((outputs[0] / "metrics" / "metrics.json").read_text())["columns"]
    assert set(columns) == {"lq", "bicubic", "baseline", "base", "policy", "codec"}
    wanted = {"psnr", "ssim", "identity_similarity", "landmark_distance", "reward_total", "sharpness", "lpips"}
    assert all(wanted <= set(row) for row in columns.values())
    for metric in ("sample_spread", "sample_entropy", "latent_entropy", "identity_spread"):
        assert {name for name, row in columns.items() if metric in row} == {"base", "policy"}
    assert columns["lq"]["identity_similarity"]["n"] == FACES - 1
    assert columns["lq"]["identity_similarity"]["nan"] == 1
    assert columns["policy"]["psnr"]["n"] == FACES


def test_two_runs_give_the_same_bytes(outputs: list[Path]) -> None:
    first, second = (sorted(path for path in root.rglob("*") if path.is_file()) for root in outputs)
    assert [path.name for path in first] == [path.name for path in second]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_the_adapter_acts_in_the_policy_column_alone(outputs: list[Path]) -> None:
    samples = pd.read_parquet(outputs[0] / "metrics" / PER_SAMPLE)
    psnr = {name: rows["psnr"].to_numpy() for name, rows in samples.groupby("column")}
    assert len(psnr["base"]) == 2 * FACES
    assert not np.array_equal(psnr["base"], psnr["policy"])


def test_the_gate_reads_what_evaluate_wrote(repository: Path, outputs: list[Path], tmp_path: Path) -> None:
    section = configfile.load(repository / "presets" / "smoke.yaml").gate
    gate.run(section, metrics=outputs[0] / "metrics", verdict=tmp_path)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    outcomes = {row["against"]: row["outcome"] for row in verdict["comparisons"]}
    assert outcomes["champion"] == "skipped"
    assert isinstance(verdict["passed"], bool)


def test_a_champion_equal_to_the_policy_draws_the_same_pictures(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Same weights, same noise, same bytes: the comparison with a champion is of the models alone."""
    artifacts.write_json(tmp_path / "champion.json", {"model": "m", "version": 1, "digest": "d"})
    (tmp_path / "release").mkdir()
    for name in ("base", "policy"):
        (tmp_path / "release" / name).symlink_to(inputs[name])
    pairs = load_pairs(inputs["pairs"], "eval")
    paths = {name: inputs[name] for name in ("baseline", "base", "policy")}
    columns = {column.name: column for column in all_columns(pairs, SAMPLING, **paths, champion=tmp_path)}
    np.testing.assert_array_equal(columns["champion"].samples, columns["policy"].samples)


def test_a_sample_does_not_depend_on_who_else_is_evaluated(inputs: dict[str, Path]) -> None:
    pairs = load_pairs(inputs["pairs"], "eval")
    two = replace(
        pairs,
        ids=pairs.ids[2:],
        captions=pairs.captions[2:],
        hq=pairs.hq[2:],
        lq=pairs.lq[2:],
        records=pairs.records[2:],
        landmarks=pairs.landmarks[2:],
    )
    paths = {name: inputs[name] for name in ("base", "policy")}
    whole = {c.name: c for c in all_columns(pairs, SAMPLING, **paths, baseline=None, champion=None)}
    part = {c.name: c for c in all_columns(two, SAMPLING, **paths, baseline=None, champion=None)}
    assert "baseline" not in part
    np.testing.assert_array_equal(part["policy"].samples, whole["policy"].samples[:, 2:])


def test_pairs_of_another_size_are_the_users_mistake(inputs: dict[str, Path]) -> None:
    pairs = load_pairs(inputs["pairs"], "eval")
    larger = replace(pairs, hq=pairs.hq.repeat(2, 1).repeat(2, 2), lq=pairs.lq.repeat(2, 2).repeat(2, 3))
    with pytest.raises(UserError, match="restores 32 px, the pairs have 64 px"):
        all_columns(larger, SAMPLING, base=inputs["base"], policy=inputs["policy"], baseline=None, champion=None)


def test_no_champion_gives_no_column(inputs: dict[str, Path]) -> None:
    assert champion_columns(inputs["champion"], load_pairs(inputs["pairs"], "eval"), SAMPLING) == []


# --- outside the graph ----------------------------------------------------------------------------


def _arguments(*values: str | Path) -> list[str]:
    return [str(value) for value in values]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of three pictures: two squares, one of another size than the model's, and one that is no square."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number, side in ((0, SIZE), (1, 2 * SIZE)):
        (folder / f"{number}.png").write_bytes(portrait((number, "eval"), side, 0).faces[0].image)
    Image.new("RGB", (40, 30)).save(folder / "wide.png")
    return folder


def restored(*values: str | Path) -> Result:
    return CliRunner().invoke(restore_command.command, _arguments(*values))


def test_restore_repeats_its_bytes_whatever_else_is_there(inputs: dict[str, Path], faces: Path, tmp_path: Path) -> None:
    options, out = ("--model", inputs["base"].parent, "--steps", 2, "--aligned"), tmp_path / "out"
    done = restored(faces, "-o", out, *options)
    assert done.exit_code == 0, done.output
    assert "2 written" in done.output
    assert "wide.png: not square (40 x 30 px)" in done.output
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png"]
    assert decode_png((out / "1.png").read_bytes()).shape == (SIZE, SIZE, 3)
    alone = tmp_path / "alone.png"
    restored(faces / "0.png", "-o", alone, *options)
    assert alone.read_bytes() == (out / "0.png").read_bytes()
    again = restored(faces / "0.png", "-o", alone, *options)
    assert isinstance(again.exception, UserError)  # it stands there already


def test_restore_paints_where_it_guessed(inputs: dict[str, Path], faces: Path, tmp_path: Path) -> None:
    options = ["--model", inputs["base"].parent, "--steps", 2, "--uncertainty", "--samples", 3, "--aligned"]
    done = restored(faces / "0.png", "-o", tmp_path / "a.png", *options)
    assert done.exit_code == 0, done.output
    assert "red shows the samples' spread" in done.output
    assert decode_png((tmp_path / "a.uncertainty.png").read_bytes()).shape == (SIZE, SIZE, 3)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """One public-domain photograph of a person, too soft, with what a camera notes."""
    soft = cv2.GaussianBlur(np.ascontiguousarray(data.astronaut()), (0, 0), 4)
    exif = Image.Exif()
    exif[CAMERA] = "camera"
    exif[ORIENTATION] = 6
    path = tmp_path / "person.jpg"
    Image.fromarray(np.ascontiguousarray(np.rot90(soft))).save(path, exif=exif, quality=95, subsampling=0)
    return path


def test_a_photograph_stays_as_it_was_around_its_face(
    inputs: dict[str, Path], photograph: Path, tmp_path: Path
) -> None:
    options = ("--model", inputs["base"].parent, "--steps", 2)
    out = tmp_path / "out"
    done = restored(photograph, "-o", out, *options, "--uncertainty", "--samples", 2)
    assert done.exit_code == 0, done.output
    with Image.open(out / "person.jpg") as written:
        assert written.getexif() == {CAMERA: "camera"}
        assert written.size == (512, 512)
    before = read_photograph(photograph.read_bytes())
    assert restored(photograph, "-o", tmp_path / "person.png", *options).exit_code == 0
    after = read_photograph((tmp_path / "person.png").read_bytes())
    changed = (before.pixels != after.pixels).any(2)
    rows, columns = np.nonzero(changed)
    assert 100 < np.ptp(rows) < 300
    assert 100 < np.ptp(columns) < 300
    assert 50 < rows.mean() < 250  # upright: her face is above the middle
    assert decode_png((out / "person.uncertainty.png").read_bytes()).shape == (512, 512, 3)
    first = (tmp_path / "person.png").read_bytes()
    assert restored(photograph, "-o", tmp_path / "person.png", *options, "--force").exit_code == 0
    assert (tmp_path / "person.png").read_bytes() == first


def test_fidelity_scale_and_faces_by_themselves(inputs: dict[str, Path], photograph: Path, tmp_path: Path) -> None:
    options = ("--model", inputs["base"].parent, "--steps", 2, "--samples", 3)
    for fidelity in (0, 1):
        out = tmp_path / f"{fidelity}.png"
        done = restored(photograph, "-o", out, *options, "--fidelity", fidelity, "--face-only")
        assert done.exit_code == 0, done.output
        assert not out.exists()
    sharp, mean = (decode_png((tmp_path / f"{fidelity}.face1.png").read_bytes()) for fidelity in (0, 1))
    assert sharp.shape == (SIZE, SIZE, 3)
    assert sharpness(mean) < sharpness(sharp)
    again = restored(photograph, "-o", tmp_path / "0.png", *options, "--fidelity", 0, "--face-only")
    assert "0.face1.png exists already" in str(again.exception)
    assert restored(photograph, "-o", tmp_path / "large.webp", *options, "--fidelity", 0, "--scale", 1.5).exit_code == 0
    with Image.open(tmp_path / "large.webp") as large:
        assert large.size == (768, 768)


def test_what_is_not_restored_is_said(inputs: dict[str, Path], photograph: Path, tmp_path: Path) -> None:
    model = ("--model", inputs["base"].parent, "--steps", 2)
    Image.fromarray(data.astronaut()).save(tmp_path / "sharp.png")
    Image.new("RGB", (90, 90)).save(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    files = [tmp_path / name for name in ("sharp.png", "empty.png", "text.png")]
    done = restored(photograph, *files, "-o", tmp_path / "out", *model)
    assert done.exit_code == 0, done.output
    assert "sharp.png: face 1 at" in done.output
    assert "left alone: sharp already" in done.output
    assert "empty.png: no face found" in done.output
    assert "text.png: not an image of a known format" in done.output
    untouched = read_photograph((tmp_path / "out" / "sharp.png").read_bytes())
    np.testing.assert_array_equal(untouched.pixels, data.astronaut())


def test_no_result_is_written_over_another(tmp_path: Path) -> None:
    """Where names fall together, also with one that a number makes."""
    for name in ("b/a.bmp", "c/a.bmp", "c/a-2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [tmp_path / name for name in ("b/a.bmp", "c/a.bmp", "c/a-2.png")]
    jobs = jobs_of(files, tmp_path / "out", force=False, uncertainty=False)
    assert [job.target.name for job in jobs] == ["a.png", "a-2.png", "a-2-2.png"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "person.jpg"], "is the photograph itself"),
        (["-o", "out.gif"], "written as PNG, JPEG, WebP or TIFF"),
        (["-o", "out.png", "--device", "nowhere"], "cannot be used here"),
        (["-o", "out.png", "--samples", "1", "--uncertainty"], "at least two"),
        (["-o", "out.png", "--samples", "3"], "nothing compares them"),
        (["nothing.jpg", "-o", "out"], "no such file or folder"),
        (["-o", "out", "--scale", "2", "--face-only"], "at the model's size"),
        (["-o", "out", "--aligned", "--every-face"], "nothing is looked for"),
    ],
)
def test_bad_wishes_are_one_line(
    inputs: dict[str, Path],
    photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(photograph.parent)
    done = restored(photograph, *options, "--model", inputs["base"].parent)
    assert isinstance(done.exception, UserError)
    assert reason in str(done.exception)
    assert [path.name for path in photograph.parent.iterdir()] == ["person.jpg"]


def test_the_picture_of_uncertainty_uses_the_releases_calibration(tmp_path: Path) -> None:
    samples = np.full((2, 16, 16, 3), 128, np.uint8)
    samples[1, :, 8:] += 20  # the right half is uncertain
    plain = uncertainty_picture(samples[0], samples, None).astype(int)
    assert (plain[:, 0, 0] - plain[:, 0, 2]).max() == 0
    assert (plain[:, -1, 0] - plain[:, -1, 2]).min() > 5
    (tmp_path / "metrics").mkdir()
    curve = {"calibration": {"spread": [0.0, 1.0], "error": [0.0, 3.0]}, "reliability": {}}
    artifacts.write_json(tmp_path / "metrics" / "uncertainty.json", {"policy": curve})
    calibrated = uncertainty_picture(samples[0], samples, load_calibration(tmp_path)).astype(int)
    assert (calibrated[:, -1, 0] - calibrated[:, -1, 2]).min() > (plain[:, -1, 0] - plain[:, -1, 2]).max()
    assert load_calibration(tmp_path / "nowhere") is None


def test_the_program_evaluates_pairs_made_elsewhere(inputs: dict[str, Path], repository: Path, tmp_path: Path) -> None:
    pairs = load_pairs(inputs["pairs"], "eval")
    for name, pictures in (("lq", pairs.lq[:, 0]), ("hq", pairs.hq)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for stem, picture in zip(pairs.ids, pictures, strict=True):
            (tmp_path / "data" / name / f"{stem}.png").write_bytes(encode_png(picture))
    preset, out = repository / "presets" / "smoke.yaml", tmp_path / "out"
    arguments = ["--model", inputs["base"].parent, "--data", tmp_path / "data", "--out", out, "--config", preset]
    done = CliRunner().invoke(evaluate_command.command, _arguments(*arguments))
    assert done.exit_code == 0, done.output
    policy = json.loads((out / "metrics.json").read_text())["columns"]["policy"]
    assert (policy["psnr"]["n"], policy["lq_consistency"]["n"]) == (FACES, 0)
    page = (out / "report.html").read_text()
    assert "CPU-hours" in page
    assert "LQ and HQ pictures" in page


def test_weights_that_are_not_there_stop_the_stage_before_it_draws(
    inputs: dict[str, Path], repository: Path, tmp_path: Path
) -> None:
    section = configfile.load(repository / "presets" / "smoke.yaml").evaluate
    changed = section.model_copy(update={"lpips_weights": str(tmp_path / "none.safetensors")})
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        evaluate.run(changed, **inputs, metrics=tmp_path, report=tmp_path)
