"""Runs without a cluster: ``PROGRAM pipeline run`` in a process that outlives the worker which started it.

Each run has a folder ``FOLDER/runs/airflow/NAME-N`` with the request, both output streams and ``state.json``, which the
process of :mod:`airflow_provider_kubeflow.local_job` keeps. Worker and triggerer must share that machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_kubeflow.errors import KubeflowUserError
from airflow_provider_kubeflow.local_job import (
    STATE,
    STDERR,
    STDOUT,
    alive,
    outside_environment,
    read_state,
    write_json,
)
from airflow_provider_kubeflow.runs import Request, Run, Step, that_counts

REQUEST = "request.json"
KEPT = 48
"""Characters of a run's name that its folder shows; a digest keeps names apart."""
STEP = re.compile(r"(?:Executing task|Task) .*?'(?P<name>[^']+)'(?P<end> finished with status .*?(?P<status>[A-Z]+))?")
STATES = {"SUCCESS": "SUCCEEDED", "FAILURE": "FAILED", None: "RUNNING"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Machine:
    """This machine as the place of runs.

    Attributes:
        program: path of the program.
        folder: folder in which it runs.
    """

    program: str
    folder: str

    @property
    def jobs(self) -> Path:
        """Where the folders of runs are."""
        return Path(self.folder) / "runs" / "airflow"

    def find(self, name: str) -> Run | None:
        """See :class:`runs.Api`."""
        folders = sorted(self.jobs.glob(f"{_slug(name)}-*")) if self.jobs.is_dir() else []
        return that_counts([self.get(folder.name) for folder in folders if (folder / REQUEST).is_file()])

    def create(self, request: Request) -> Run:
        """See :class:`runs.Api`.

        Raises:
            KubeflowUserError: there is no such program or folder, or a version is asked for.
        """
        self.check()
        if request.version:
            raise KubeflowUserError("backend local: knows no versions of pipelines: leave version out")
        folder = self._new_folder(request.name)
        named = request.package or request.pipeline or ""
        parameters = [f"--param={name}={value}" for name, value in request.arguments.items()]
        command = [self.program, "pipeline", "run", named, *parameters, "--json"]
        write_json(folder / REQUEST, {"name": request.name, "command": command})
        job = [sys.executable, "-m", "airflow_provider_kubeflow.local_job", str(folder), self.folder, *command]
        with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("wb") as err:
            process = subprocess.Popen(
                job, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, env=outside_environment()
            )
        write_json(folder / STATE, {"state": "RUNNING", "process": process.pid}, new=True)
        return self.get(folder.name)

    def get(self, number: str) -> Run:
        """See :class:`runs.Api`."""
        folder = self.jobs / number
        if not (folder / REQUEST).is_file():
            raise KubeflowUserError(f"{folder}: there is no such run")
        name = json.loads((folder / REQUEST).read_text(encoding="utf-8"))["name"]
        found = read_state(folder)
        state, error = found["state"], found.get("error", "")
        if state in ("PENDING", "RUNNING") and found.get("process") and not alive(found["process"]):
            # it may have written its end between the two looks
            found = read_state(folder)
            state, error = found["state"], found.get("error", "")
            if state == "RUNNING":
                state, error = "FAILED", "its process was killed: pod deleted or machine restarted"
        return Run(number, name, state, error, _steps(folder))

    def terminate(self, number: str) -> None:
        """See :class:`runs.Api`."""
        found = read_state(self.jobs / number)
        if found["state"] == "RUNNING" and alive(found["process"]):
            os.kill(found["process"], signal.SIGTERM)

    def link(self, number: str) -> str:
        """See :class:`runs.Api`."""
        return (self.jobs / number).resolve().as_uri()

    def check(self) -> None:
        """Look whether program and folder are there.

        Raises:
            KubeflowUserError: one is not.
        """
        if not Path(self.folder).is_dir():
            raise KubeflowUserError(f"{self.folder}: is no folder: mend folder in the connection")
        if not os.access(self.program, os.X_OK) or Path(self.program).is_dir():
            raise KubeflowUserError(f"{self.program}: is no program: mend program in the connection")

    def _new_folder(self, name: str) -> Path:
        """Make a folder that nobody else has made."""
        self.jobs.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = self.jobs / f"{_slug(name)}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


def _slug(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:KEPT]
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _steps(folder: Path) -> tuple[Step, ...]:
    """Return the tasks that the output names, in the order of their start."""
    states: dict[str, Any] = {}
    for stream in (STDOUT, STDERR):
        path = folder / stream
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            if found := STEP.search(COLOUR.sub("", line)):
                states[found["name"]] = STATES.get(found["status"], "RUNNING")
    return tuple(Step(name, state) for name, state in states.items())
