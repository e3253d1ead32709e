"""Stages as processes that are killed at a moment of their work and started again by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from prefrestore.stage import STAGES, run_record

GONE_SECONDS = 30.0
"""How long children of a killed stage may take to see that it is gone."""


@dataclass(frozen=True)
class Work:
    """A stage's command: its section, the folder of every port, and where its checkpoints go."""

    stage: str
    section: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    checkpoints: Path
    environment: Mapping[str, str]
    cwd: Path

    @property
    def command(self) -> list[str]:
        """What is run."""
        row = STAGES[self.stage]
        (port,) = row.outputs
        paths = {**{name: self.inputs[name] for name in row.inputs}, port: self.output}
        section = ["--section", json.dumps(self.section)]
        ports = [f"--{name}={path}" for name, path in paths.items()]
        return [sys.executable, "-m", "prefrestore", "stage", self.stage, *section, *ports]

    def at(self, folder: Path) -> Work:
        """Return the same work with output and checkpoints in another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, output=folder / self.output.name, checkpoints=folder / "checkpoints")

    @property
    def whole_environment(self) -> dict[str, str]:
        """The environment, with the place of the checkpoints."""
        return {**os.environ, **self.environment, "PREFRESTORE_CHECKPOINTS": str(self.checkpoints)}

    def leftovers(self) -> list[str]:
        """Return temporary folders beside the output."""
        return [path.name for path in self.output.parent.glob(f".{self.output.name}.*")]


def finish(work: Work) -> str:
    """Run to the end and return the log."""
    done = subprocess.run(
        work.command, cwd=work.cwd, env=work.whole_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{work.stage}\n{done.stderr[-6000:]}"
    return done.stderr


def seconds_of(work: Work) -> float:
    """Return how long a finished work took, without the start of its process."""
    return float(json.loads(run_record(work.output).read_text(encoding="utf-8"))["wall_seconds"])


def kill_after(work: Work, seconds: float) -> None:
    """Start, and kill so long after the work itself has begun, or at its end."""
    with subprocess.Popen(
        work.command,
        cwd=work.cwd,
        env=work.whole_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        known = set(work.leftovers())
        while process.poll() is None and not set(work.leftovers()) - known:
            time.sleep(0.01)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _wait_until_gone(process.pid)


def _wait_until_gone(session: int) -> None:
    """Wait for the end of what a stage had started; it must end by itself."""
    end = time.monotonic() + GONE_SECONDS
    while left := _of_session(session):
        assert time.monotonic() < end, f"still alive: {[process.cmdline() for process in left]}"
        time.sleep(0.1)


def _of_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
