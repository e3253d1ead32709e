"""The compiled ``realign`` package in real containers, built from ``docker/Dockerfile``: every stage in its own image.

Takes minutes and some gigabytes, so it is no part of ``make test``: run ``make test-containers``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import resources
from prefrestore import artifacts
from prefrestore.stage import ARTIFACTS, STAGES
from support import containers

TAG = "test"
IMAGES = {kind: f"localhost/prefrestore/{kind}:{TAG}" for kind in ("data", "train", "airflow")}
STEPS = {kind: IMAGES[kind] for kind in ("data", "train")}
REALIGNED = ("collect_preferences", "train_reward", "align", "fetch_champion", "evaluate", "gate", "publish")


@pytest.fixture(scope="module")
def engine(repository: Path) -> Iterator[containers.Engine]:
    """A Podman that has the images of ``make images``."""
    if reason := containers.missing():
        pytest.skip(reason)
    made = containers.Engine(Path(tempfile.mkdtemp(prefix="prefrestore-containers-")))
    try:
        made.configure()
        made.make_base()
        made.build(repository, TAG)
        yield made
    finally:
        made.close()


def _start(engine: containers.Engine, project: Path, log: Path) -> subprocess.Popen[bytes]:
    given = [f"artifacts_uri={project / 'artifacts'}", "preset=smoke"]
    given += [f"{kind}_image={image}" for kind, image in STEPS.items()]
    command = [sys.executable, "-m", "prefrestore", "pipeline", "run", "realign", "--runner", "docker"]
    with log.open("wb") as stream:
        words = [f"--param={word}" for word in given]
        environment = engine.environment | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, *words], cwd=project, stdout=stream, stderr=stream, env=environment)


def _kill_in_training(engine: containers.Engine, process: subprocess.Popen[bytes], project: Path) -> None:
    """Kill the container of ``align`` when the second of its two epochs has begun."""
    while process.poll() is None:
        if list((project / ".checkpoints").glob("align/*/step-00000004/state.json")):
            (found,) = (number for command, number in engine.running().items() if "components.step align" in command)
            engine.call("kill", found)
            return
        time.sleep(0.05)
    raise AssertionError("the pipeline ended before align could be killed")


def _executed(log: str) -> dict[str, list[str]]:
    """Return the images in which each task was executed, in order."""
    plain = re.sub(r"\x1b\[\d+m", "", log)
    found: dict[str, list[str]] = {}
    for task, image in re.findall(r"Executing task '([\w-]+)'.*?in image (\S+)", plain, re.DOTALL):
        found.setdefault(task.replace("-", "_"), []).append(image)
    return found


def test_images_run_as_nobody_in_particular_and_hold_no_tools(engine: containers.Engine) -> None:
    for image in IMAGES.values():
        assert engine.call("run", "--rm", image, "id", "-u").strip() == "10001"
        assert engine.call("run", "--rm", image, "sh", "-c", "command -v pip gcc make || true").strip() == ""
    for kind, image in STEPS.items():
        assert "Blind face restoration" in engine.call("run", "--rm", image)
        probe = "import importlib.util as u; print(u.find_spec('torch') is not None, u.find_spec('kfp') is not None)"
        found = engine.call("run", "--rm", image, "python3", "-c", probe).split()
        assert found == [str(kind == "train"), "False"]


def test_image_of_airflow_reads_every_dag(engine: containers.Engine, repository: Path) -> None:
    files = sorted(path.stem for path in (repository / "dags").glob("*.py"))
    probe = f"print(*[__import__(name).__name__ for name in {files}])"
    found = engine.call("run", "--rm", IMAGES["airflow"], "python", "-c", probe)
    assert found.splitlines()[-1].split() == files


def test_realign_in_containers_gives_the_metrics_of_dvc_repro(
    engine: containers.Engine, finished: Path, tmp_path: Path
) -> None:
    """Also when the container that aligns is killed: it is tried again and goes on; a second run takes the cache."""
    shutil.rmtree(finished / ".checkpoints")  # those of the graph itself
    process = _start(engine, finished, tmp_path / "log")
    _kill_in_training(engine, process, finished)
    code = process.wait()
    log = (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
    assert code == 0, log[-6000:]

    ran = _executed(log)
    assert {name: set(ran[name]) for name in REALIGNED} == {
        name: {STEPS[resources.STEPS[name].image]} for name in REALIGNED
    }
    assert "resumes at" in log
    (root,) = (finished / "runs").glob("prefrestore-realign-*")
    for name in REALIGNED:
        step = root / name.replace("_", "-")
        for port in STAGES[name].outputs:
            assert artifacts.digest(step / port) == artifacts.digest(finished / ARTIFACTS[port].path), port

    again = _start(engine, finished, tmp_path / "again")
    assert again.wait() == 0
    assert set(_executed((tmp_path / "again").read_text(encoding="utf-8"))) == {"preflight", "publish", "notify"}
