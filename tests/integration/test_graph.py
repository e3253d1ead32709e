"""The whole graph at the smoke preset, in copies of the project: what runs, what does not, and what comes out.

One finished graph is made once and shared; nothing here writes to the repository itself.
"""

from __future__ import annotations

import html
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefrestore import artifacts, configfile
from prefrestore.stage import ARTIFACTS, STAGES
from support import graph as graphs

# One worker of pytest-xdist takes all of this file, so that the graph is made once.
pytestmark = pytest.mark.xdist_group("graph")

TRAINING_BEFORE_KILL = 5.0
"""Seconds of training after which a trainer is killed."""


def _status(folder: Path) -> set[str]:
    return set(json.loads(graphs.run(folder, "dvc", "status", "--json")))


def _hashes(folder: Path) -> dict[str, str]:
    """Return DVC's hash of every output."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def _descendants(name: str) -> set[str]:
    """Return the stages that read, directly or not, what a stage writes."""
    found: set[str] = set()
    made = set(STAGES[name].outputs)
    for row in STAGES.values():
        if made & set(row.inputs):
            found.add(row.name)
            made |= set(row.outputs)
    return found


def test_every_artifact_is_finished_and_says_where_it_comes_from(graph: Path) -> None:
    active = configfile.load(graph / "params.yaml")
    sections = {type(section): section.identity() for section in vars(active).values()}
    for row in STAGES.values():
        for name in row.outputs:
            manifest = artifacts.read_manifest(graph / ARTIFACTS[name].path)
            assert (manifest.artifact, manifest.stage, manifest.config) == (name, row.name, sections[row.section])
            assert manifest.inputs == {port: artifacts.digest(graph / ARTIFACTS[port].path) for port in row.inputs}


def test_run_records_lie_beside_outputs_and_nothing_else_does(graph: Path) -> None:
    folders = {ARTIFACTS[name].path for name in ARTIFACTS}
    records = {f"{ARTIFACTS[row.outputs[0]].path}.run.json" for row in STAGES.values()}
    top = {f"artifacts/{path.name}" for path in (graph / "artifacts").iterdir()}
    assert top == {path for path in folders | records if path.startswith("artifacts/")}
    for path in records:
        record = artifacts.read_json(graph / path)
        assert record["wall_seconds"] > 0
        assert record["peak_memory_mib"] > 0


def test_metrics_hold_every_column_and_metric(graph: Path) -> None:
    columns = artifacts.read_json(graph / "reports" / "metrics.json")["columns"]
    wanted = {"psnr", "ssim", "identity_similarity", "landmark_distance", "reward_total", "sharpness"}
    for name in ("lq", "bicubic", "baseline", "base", "policy"):
        assert wanted <= set(columns[name]), name
        assert all({"mean", "std", "n"} <= set(columns[name][metric]) for metric in wanted)
    for name in ("base", "policy"):
        assert columns[name]["sample_spread"]["n"] == configfile.load(graph / "params.yaml").ingest.num_eval


def test_report_is_one_file_without_outside_parts(graph: Path) -> None:
    text = (graph / "artifacts" / "report" / "report.html").read_text(encoding="utf-8")
    assert "<img" in text
    for outside in ('src="http', "src='http", 'href="http', "@import", "file://", str(graph)):
        assert outside not in text


def test_summary_names_the_metrics_and_the_report(graph: Path) -> None:
    text = graphs.run(graph, "prefrestore", "report")
    for word in ("PSNR", "Identity", "verdict:", "release:", str(graph / "report.html")):
        assert word in text
    page = (graph / "report.html").read_text(encoding="utf-8")
    verdict = artifacts.read_json(graph / "artifacts" / "verdict" / "verdict.json")["sentence"]
    assert html.escape(verdict) in page
    assert all(f">{name.replace('_', ' ')}</th>" in page.split('id="cost"')[1] for name in STAGES)


def test_dvc_draws_every_plot(graph: Path) -> None:
    drawn = json.loads(graphs.run(graph, "dvc", "plots", "show", "--json"))
    assert "errors" not in drawn
    declared = yaml.safe_load((graph / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    assert len(drawn["data"]) == len(declared) == 7
    assert all(len(figures) == 1 for figures in drawn["data"].values())


def test_second_run_does_nothing(graph: Path) -> None:
    output = graphs.run(graph, "dvc", "repro")
    assert graphs.stages_run(output) == []
    assert _status(graph) == set()


def test_changed_kl_weight_touches_align_and_what_follows_only(finished: Path) -> None:
    """DVC names a following stage when its inputs have changed, so what follows shows once align has run."""
    values = yaml.safe_load((finished / "params.yaml").read_text(encoding="utf-8"))
    values["align"]["kl_weight"] = 0.5
    (finished / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    assert _status(finished) == {"align"}

    graphs.run(finished, "dvc", "repro", "--single-item", "align")
    readers = {row.name for row in STAGES.values() if "policy" in row.inputs}
    assert _status(finished) == readers

    ran = set(graphs.stages_run(graphs.run(finished, "dvc", "repro")))
    assert readers <= ran | {"publish"}
    assert ran <= _descendants("align")
    assert _status(finished) == set()


@pytest.mark.parametrize(
    ("edited", "touched"),
    [
        ("commands/report.py", set()),
        ("cli.py", set()),
        ("evaluation/templates/report.html.j2", {"evaluate"}),
        ("stages/gate.py", {"gate"}),
    ],
)
def test_edited_code_touches_the_stages_that_use_it(edited: str, touched: set[str], finished: Path) -> None:
    with (finished / "src" / "prefrestore" / edited).open("a", encoding="utf-8") as stream:
        stream.write("\n")
    assert _status(finished) == touched


def test_changed_images_of_a_folder_touch_ingest(finished: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "one.png").write_bytes(b"one")
    graphs.run(finished, "prefrestore", "config", "use", "--data", str(images))
    assert "ingest" in _status(finished)
    graphs.run(finished, "dvc", "commit", "--force", "ingest")
    assert "ingest" not in _status(finished)
    (images / "two.png").write_bytes(b"two")
    assert "ingest" in _status(finished)


def test_the_number_of_workers_leaves_no_trace(finished: Path) -> None:
    values = yaml.safe_load((finished / "params.yaml").read_text(encoding="utf-8"))
    values["ingest"]["workers"] = 1
    values["degrade"]["workers"] = 3
    (finished / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    assert graphs.stages_run(graphs.run(finished, "dvc", "repro")) == ["ingest", "degrade"]


def test_two_clean_runs_give_equal_outputs(graph: Path, repository: Path, tmp_path: Path) -> None:
    again = graphs.copy(repository, tmp_path / "another" / "place")
    assert graphs.stages_run(graphs.run(again, "dvc", "repro")) == list(STAGES)
    first, second = _hashes(graph), _hashes(again)
    assert set(first) == {artifact.path for artifact in ARTIFACTS.values()}
    assert {path for path in first if first[path] != second[path]} == set()


# --- kill and resume ------------------------------------------------------------------------------


def _longer(folder: Path, name: str, changes: dict[str, Any]) -> str:
    """Return a stage's section as JSON with some values replaced, so that it trains for longer."""
    section = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))[name]
    for key, value in changes.items():
        section[key] = section[key] | value if isinstance(value, dict) else value
    return json.dumps(section)


def _command(folder: Path, name: str, section: str, output: Path) -> list[str]:
    ports = [f"--{port}={folder / ARTIFACTS[port].path}" for port in STAGES[name].inputs]
    (port,) = STAGES[name].outputs
    return [sys.executable, "-m", "prefrestore", "stage", name, "--section", section, *ports, f"--{port}={output}"]


def _train(command: Sequence[str], folder: Path, checkpoints: Path) -> str:
    """Run a stage to its end and return its log."""
    environment = {**graphs.environment(folder), "PREFRESTORE_CHECKPOINTS": str(checkpoints)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def _kill_in_training(command: Sequence[str], folder: Path, checkpoints: Path) -> None:
    """Start a stage and kill it some seconds after it wrote its first new checkpoint."""
    before = set(checkpoints.rglob("step-*/state.json"))
    environment = {**graphs.environment(folder), "PREFRESTORE_CHECKPOINTS": str(checkpoints)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not set(checkpoints.rglob("step-*/state.json")) - before:
            time.sleep(0.05)
        time.sleep(TRAINING_BEFORE_KILL)
        assert process.poll() is None, "training ended before it could be killed: give it more steps"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


LONGER = {
    "pretrain": {"step1": {"steps": 300}, "step2": {"steps": 400}, "accumulation": 2},
    "align": {"epochs": 60, "guard": {"patience": 60}},  # the guard must not end it first
}


@pytest.mark.parametrize("name", list(LONGER))
def test_killed_training_resumes_to_the_same_bytes(name: str, graph: Path, tmp_path: Path) -> None:
    section = _longer(graph, name, LONGER[name])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _train(_command(graph, name, section, whole), graph, tmp_path / "checkpoints-whole")

    command = _command(graph, name, section, parts)
    for _ in range(2):
        _kill_in_training(command, graph, tmp_path / "checkpoints-parts")
        assert not parts.exists()
    log = _train(command, graph, tmp_path / "checkpoints-parts")

    assert "resumes at" in log
    assert artifacts.digest(parts) == artifacts.digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".parts")) == []
