"""Copies of the project in which the whole graph runs at the smoke preset, with the copy's own code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

COPIED = ("src", "dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore", "presets")


def copy(repository: Path, folder: Path) -> Path:
    """Copy the project with the smoke preset as its active configuration."""
    for name in COPIED:
        source, target = repository / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    shutil.copy(repository / "presets" / "smoke.yaml", folder / "params.yaml")
    run(folder, "git", "init", "--quiet")
    run(folder, "prefrestore", "pipeline", "dvc", "--write")
    return folder


def run(folder: Path, *command: str) -> str:
    """Run a command of the environment and return what it printed; a failure fails the test with its messages."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """Let programs of the environment run the copy's code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src")}


def stages_run(output: str) -> list[str]:
    """Return the stages that ``dvc repro`` says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]
