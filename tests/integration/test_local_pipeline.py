"""``prefrestore pipeline run`` in processes: what the cache takes and what it does not; a step killed inside."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from prefrestore import artifacts
from prefrestore.stage import ARTIFACTS
from support import graph as graphs

# The group in which the finished graph is made.
pytestmark = pytest.mark.xdist_group("graph")

SECOND_EPOCH = "step-00000004"
"""Name of the checkpoint with which the second of align's two epochs has begun."""
LAST = {"preflight", "publish", "notify"}
"""Steps that are never taken from the cache."""


def _realign(project: Path, *params: str) -> list[str]:
    words = [f"--param={word}" for word in (f"artifacts_uri={project / 'artifacts'}", "preset=smoke", *params)]
    return [sys.executable, "-m", "prefrestore", "pipeline", "run", "realign", *words]


def _environment(project: Path) -> dict[str, str]:
    own = {"PREFRESTORE_CHECKPOINTS": str(project / ".checkpoints"), "OMP_NUM_THREADS": "1"}
    return graphs.environment(project) | own


def _run(project: Path, command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=project, env=_environment(project), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _executed(project: Path) -> set[str]:
    """Return the steps that wrote something in the newest run; what came from the cache lies in an older one."""
    (*_, newest) = sorted((project / "runs").glob("prefrestore-realign-*"))
    return {path.name for path in newest.iterdir() if any(path.iterdir())}


def _align(root: Path) -> psutil.Process | None:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "components.step" in words and "align" in words and str(root) in " ".join(words):
            return process
    return None


def test_a_killed_step_resumes_and_a_second_run_takes_the_cache_unless_data_changed(finished: Path) -> None:
    shutil.rmtree(finished / ".checkpoints")  # those of the graph itself
    command = _realign(finished)
    with subprocess.Popen(
        command, cwd=finished, env=_environment(finished), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        # kfp's lines come to their end with the process only, so the pipe does not fill.
        while not list((finished / ".checkpoints").glob(f"align/*/{SECOND_EPOCH}/state.json")):
            assert running.poll() is None, running.stdout.read()[-6000:]
            time.sleep(0.05)
        killed = _align(finished)
        assert killed is not None, "align ended before it could be killed"
        killed.send_signal(signal.SIGKILL)
        log, _ = running.communicate()
    assert running.returncode == 0, log[-6000:]
    assert "resumes at" in log
    (root,) = (finished / "runs").glob("prefrestore-realign-*")
    for step, port in {"align": "policy", "evaluate": "metrics", "gate": "verdict"}.items():
        assert artifacts.digest(root / step / port) == artifacts.digest(finished / ARTIFACTS[port].path), port

    _run(finished, command)
    assert _executed(finished) <= LAST

    baseline = finished / "artifacts" / "baseline"
    shutil.copytree(baseline, finished / "before")
    weights = baseline / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    _run(finished, command)
    assert {"fetch-from-root", "collect-preferences", "evaluate"} <= _executed(finished)


def test_a_bad_choice_ends_the_run_in_its_first_step_with_one_line(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "presets", tmp_path / "presets")
    command = [sys.executable, "-m", "prefrestore", "pipeline", "run", "full", "--param=gpu_pool=moon"]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = [line.strip() for line in done.stdout.splitlines() if "moon" in line]
    assert said == ["prefrestore: gpu_pool: there is no pool moon: choose from cpu, gpu"]
    assert "Traceback" not in done.stdout + done.stderr
    log = re.sub(r"\x1b\[\d+m", "", done.stdout + done.stderr)
    assert set(re.findall(r"Executing task '([\w-]+)'", log)) == {"preflight", "notify"}
