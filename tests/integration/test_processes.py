"""Training in several processes: the same result as in one, files written once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefrestore import artifacts
from prefrestore.data.pairs import load_pairs
from prefrestore.reward_model.candidates import Origin, make_candidate, write_candidates

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
QUIET = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
TOLERANCE = 1e-6
"""Largest difference of any weight; sums of two numbers do not depend on their order, so it is 0 where we looked."""

CUT_TOLERANCE, CUT_STRAYS, CUT_MEAN = 5e-5, 1e-5, 1e-5
"""Where weights are cut the gradient's norm is summed in another order. On some processors a weight whose gradient is
nearly zero goes where Adam takes that rounding: at most this share may differ by more, no tensor in the mean.
"""


def checkpoints(folder: Path, output: str) -> Path:
    """Return where the run that writes ``--port=name`` keeps its checkpoints: no run resumes another's."""
    return folder / f"checkpoints-{output.partition('=')[2]}"


def run(folder: Path, launcher: tuple[str, ...], name: str, section: dict, *ports: str) -> str:
    command = [sys.executable, *launcher, "-m", "prefrestore", "stage", name, "--section", json.dumps(section), *ports]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PREFRESTORE_CHECKPOINTS"] = str(checkpoints(folder, ports[-1]))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}\n{done.stderr[-6000:]}"
    return done.stderr


@pytest.fixture(scope="module")
def workspace(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Pairs, a hardly trained codec, and the section ``pretrain`` with a few steps."""
    folder = tmp_path_factory.mktemp("processes")
    config = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    few = {"steps": 2}
    codec = config["train_codec"] | few
    codec["tokenizer"] = codec["tokenizer"] | few
    run(folder, (), "ingest", config["ingest"] | {"num_train": 12, "num_eval": 2, "workers": 1}, "--faces=faces")
    run(folder, (), "degrade", config["degrade"] | {"workers": 1}, "--faces=faces", "--pairs=pairs")
    run(folder, (), "train_codec", codec, "--faces=faces", "--codec=codec")
    section = config["pretrain"] | {"checkpoint_every": 2}
    for step in ("step1", "step2"):
        section[step] = section[step] | {"steps": 5}
    return folder, section


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.relative_to(folder)}.{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def one(workspace: tuple[Path, dict]) -> dict[str, torch.Tensor]:
    """What one process makes of ``pretrain`` with accumulation 2."""
    folder, section = workspace
    run(folder, (), "pretrain", section | {"accumulation": 2}, "--pairs=pairs", "--codec=codec", "--base=one")
    return weights(folder / "one")


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any weight."""
    assert one.keys() == other.keys()
    return max((value - other[name]).abs().max().item() for name, value in one.items())


def test_two_processes_equal_one_with_doubled_accumulation(
    workspace: tuple[Path, dict], one: dict[str, torch.Tensor]
) -> None:
    folder, section = workspace
    ports = ("--pairs=pairs", "--codec=codec")
    log = run(folder, (*LAUNCH, *QUIET), "pretrain", section | {"accumulation": 1}, *ports, "--base=two")
    assert far(one, weights(folder / "two")) <= TOLERANCE
    assert log.count("pretrain step 2: 5/5 step") == 1
    assert (folder / "two.run.json").is_file()
    assert not list(folder.glob(".*.tmp"))


def test_weights_cut_over_two_processes_equal_replicated_ones_also_when_resumed(
    workspace: tuple[Path, dict], one: dict[str, torch.Tensor]
) -> None:
    folder, section = workspace
    ports, sharded = ("--pairs=pairs", "--codec=codec"), section | {"accumulation": 1, "sharded": True}
    run(folder, (*LAUNCH, *QUIET), "pretrain", sharded, *ports, "--base=cut")
    apart = {name: (one[name] - value).abs() for name, value in weights(folder / "cut").items()}
    assert apart.keys() == one.keys()
    assert torch.cat([value.flatten() > CUT_TOLERANCE for value in apart.values()]).float().mean() <= CUT_STRAYS
    assert max(float(value.mean()) for value in apart.values()) <= CUT_MEAN

    # a run that ended after its last checkpoint but one
    steps = sorted((checkpoints(folder, "=cut") / "pretrain-step2").rglob("step-*"))
    assert [step.name for step in steps] == ["step-00000004", "step-00000005"]
    shutil.copytree(checkpoints(folder, "=cut"), checkpoints(folder, "=resumed"))
    for step in checkpoints(folder, "=resumed").rglob("step-00000005"):
        shutil.rmtree(step)
    log = run(folder, (*LAUNCH, *QUIET), "pretrain", sharded, *ports, "--base=resumed")
    assert "resumes at" in log
    assert artifacts.digest(folder / "resumed") == artifacts.digest(folder / "cut")


@pytest.fixture(scope="module")
def aligning(workspace: tuple[Path, dict], repository: Path) -> tuple[Path, dict]:
    """A base and a reward beside the pairs, and the section ``align``."""
    folder, section = workspace
    config = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    candidates, judged = ("--pairs=pairs", "--candidates=candidates"), "--preferences=preferences"
    run(folder, (), "pretrain", section, "--pairs=pairs", "--codec=codec", "--base=base")
    run(folder, (), "sample_candidates", config["sample_candidates"], *candidates, "--base=base")
    run(folder, (), "collect_preferences", config["collect_preferences"], *candidates, judged)
    run(folder, (), "train_reward", config["train_reward"] | {"steps": 4}, *candidates, judged, "--reward=reward")
    guard = config["align"]["guard"] | {"faces": 2}
    return folder, config["align"] | {
        "guard": guard,
        "pool": 8,
        "groups": 4,
        "updates": 2,
        "epochs": 2,
        "batch_size": 4,
    }


def test_alignment_in_two_processes_equals_one(aligning: tuple[Path, dict]) -> None:
    folder, section = aligning
    ports = ("--pairs=pairs", "--base=base", "--reward=reward")
    run(folder, (), "align", section, *ports, "--policy=one-policy")
    log = run(folder, (*LAUNCH, *QUIET), "align", section | {"checkpoint_every": 1}, *ports, "--policy=two-policy")
    # the last checkpoint: the policy that is kept may be the base
    ends = [max(checkpoints(folder, f"={name}").rglob("step-*")) for name in ("one-policy", "two-policy")]
    assert [end.name for end in ends] == ["step-00000004"] * 2
    one, two = (load_file(end / "tensors.safetensors") for end in ends)
    assert one.keys() == two.keys()
    assert any(value.any() for name, value in one.items() if name.startswith("policy.") and "lora_B" in name)
    assert max((value - two[name]).abs().max().item() for name, value in one.items() if "lora" in name) <= 1e-5
    histories = [json.loads((folder / name / "history.json").read_text()) for name in ("one-policy", "two-policy")]
    assert [list(row) for row in histories[0]] == [list(row) for row in histories[1]]
    assert all(
        row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)
        for row, other in zip(*histories, strict=True)
        for name in row
    )
    assert log.count("align: 2/2 epoch") == 1


def test_a_batch_that_does_not_divide_is_one_clear_line(workspace: tuple[Path, dict]) -> None:
    folder, section = workspace
    command = [sys.executable, "-m", "prefrestore", "stage", "pretrain", "--section"]
    command += [json.dumps(section | {"accumulation": 3}), "--pairs=pairs", "--codec=codec", "--base=three"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be cut into 3 equal parts" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "three").exists()


@pytest.fixture(scope="module")
def judged(workspace: tuple[Path, dict], repository: Path) -> tuple[Path, dict]:
    """Candidates that differ in blur, simulated judgements on them, and the section ``train_reward``, few steps."""
    folder, _ = workspace
    config = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    pairs = load_pairs(folder / "pairs", "train")
    with artifacts.replacing(folder / "candidates") as target:
        rows = [
            make_candidate(face, 0, cv2.GaussianBlur(hq, (0, 0), blur), Origin(number, 4, "base"))
            for face, hq in zip(pairs.ids, pairs.hq, strict=True)
            for number, blur in enumerate((0.4, 1.0, 2.0))
        ]
        write_candidates(target, rows)
        artifacts.write_manifest(target, artifacts.Manifest("candidates", "sample_candidates", {}, {}))
    ports = ("--candidates=candidates", "--pairs=pairs", "--preferences=preferences")
    run(folder, (), "collect_preferences", config["collect_preferences"], *ports)
    # without a face reward, whose processes would take most of the time
    weights = {"preference": 1.0, "structure": 0.5}
    return folder, config["train_reward"] | {"steps": 6, "checkpoint_every": 2, "weights": weights}


def test_the_reward_of_two_processes_is_that_of_one_with_doubled_accumulation(judged: tuple[Path, dict]) -> None:
    folder, section = judged
    ports = ("--pairs=pairs", "--candidates=candidates", "--preferences=preferences")
    run(folder, (), "train_reward", section | {"accumulation": 2}, *ports, "--reward=reward-one")
    log = run(folder, (*LAUNCH, *QUIET), "train_reward", section, *ports, "--reward=reward-two")
    one, two = weights(folder / "reward-one"), weights(folder / "reward-two")
    assert one.keys() == two.keys()
    assert any(name.startswith("validation.") for name in one)
    trained = [name for name in one if not name.endswith(("temperature", "offset"))]
    assert max((one[name] - two[name]).abs().max().item() for name in trained) <= TOLERANCE
    assert log.count("train_reward (reward): 6/6 step") == 1


def _step(folder: Path, section: dict, processes: int, base: str) -> subprocess.CompletedProcess[str]:
    """Run pretrain as the pod of a pipeline does that asked for so many GPUs."""
    ports = {"pairs": folder / "pairs", "codec": folder / "codec", "base": folder / base}
    made = {"base": {"artifacts": [{"name": "base", "type": {}, "uri": str(folder / base)}]}}
    task = {"inputs": {}, "outputs": {"outputFile": str(folder / f"{base}.json"), "artifacts": made}}
    command = [sys.executable, "-m", "components.step", "pretrain", f"--executor-input={json.dumps(task)}"]
    command += [f"--section={json.dumps(section)}", f"--launch={json.dumps({'processes': processes})}"]
    command += [f"--{name}={path}" for name, path in ports.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PREFRESTORE_CHECKPOINTS"] = str(folder / f"checkpoints-{base}")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_pod_with_several_gpus_trains_in_as_many_processes(
    workspace: tuple[Path, dict], one: dict[str, torch.Tensor]
) -> None:
    folder, section = workspace
    done = _step(folder, section | {"accumulation": 1}, 2, "pod")
    assert done.returncode == 0, done.stderr[-6000:]
    pod = weights(folder / "pod")
    assert max((value - pod[name]).abs().max().item() for name, value in one.items()) <= TOLERANCE
    described = json.loads((folder / "pod.json").read_text())["artifacts"]["base"]["artifacts"][0]["metadata"]
    assert described["stage"] == "pretrain"


def test_processes_of_a_pod_that_fail_say_why_in_one_line(workspace: tuple[Path, dict]) -> None:
    folder, section = workspace
    done = _step(folder, section, 3, "uneven")
    assert done.returncode == 2
    assert "cannot be cut into 3 equal parts" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("prefrestore: pretrain: 3 processes ended with exit code")
    assert not (folder / "uneven").exists()
