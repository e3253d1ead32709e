"""Airflow's four services as processes of their own, and its REST interface; nothing of Airflow is imported here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from support.net import free_port

T = TypeVar("T")
SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer")
USER, PASSWORD = "rita", "a-password-of-the-tests"
# A DAG that was switched on gets its watcher when its file is parsed the next time.
QUICK = {
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "15",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
}


def airflow_environment(venv: Path, dags: Path, home: Path, **settings: str) -> dict[str, str]:
    """Return an environment in which ``airflow`` runs with these DAGs; ``settings`` are SECTION__KEY."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PREFRESTORE_LOOP_"))}
    values = {
        "CORE__DAGS_FOLDER": str(dags),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__UNIT_TEST_MODE": "False",
        "LOGGING__LOGGING_LEVEL": "INFO",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
        "LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        **settings,
    }
    return {
        **own,
        "AIRFLOW_HOME": str(home),
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(dags),
        **{f"AIRFLOW__{name}": value for name, value in values.items()},
    }


def connection(**fields: Any) -> str:
    """Return a connection as its variable AIRFLOW_CONN_NAME has it."""
    return json.dumps(fields)


class Airflow:
    """One installation; ``kill`` is for faults, ``stop`` for the end."""

    def __init__(self, home: Path, environment: Mapping[str, str], port: int) -> None:
        self.home, self.environment = home, dict(environment)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.port = port

    def run(self, *arguments: str) -> str:
        """Run ``airflow ARGUMENTS`` to its end."""
        done = subprocess.run(
            ["airflow", *arguments], env=self.environment, cwd=self.home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def start(self, *services: str) -> None:
        """Start services; all of them by default."""
        for name in services or SERVICES:
            extra = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"] if name == "api-server" else []
            with (self.home / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    ["airflow", name, *extra],
                    env=self.environment,
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill(self, *services: str) -> None:
        """End services and all that they started, without warning."""
        for name in services:
            process = self.processes.pop(name)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End everything."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(1)
        self.kill(*list(self.processes))
        self.client.close()

    def log(self, service: str) -> str:
        """Return what a service has written."""
        return (self.home / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def task_log(self, dag: str, task: str) -> str:
        """Return what a task has written, over all runs and tries, the triggerer's part included."""
        files = sorted((self.home / "logs").glob(f"dag_id={dag}/run_id=*/task_id={task}/*.log*"))
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)

    # --- REST ---------------------------------------------------------------------------------

    def log_in(self) -> None:
        """Get a token, as a person does."""
        answer = self.client.post("/auth/token", json={"username": USER, "password": PASSWORD})
        answer.raise_for_status()
        self.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str) -> Any:
        """Ask the REST interface."""
        answer = self.client.get(f"/api/v2/{path}")
        answer.raise_for_status()
        return answer.json()

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """Tell the REST interface."""
        answer = self.client.request(method, f"/api/v2/{path}", json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG, oldest first."""
        rows: list[dict[str, Any]] = self.get(f"dags/{dag}/dagRuns?order_by=run_after&limit=50")["dag_runs"]
        return rows

    def tasks(self, dag: str, run: str) -> dict[str, str]:
        """Return the state of every task of a run."""
        rows = self.get(f"dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {row["task_id"]: row["state"] for row in rows}


def eventually(look: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of ``look``; connection errors count as not yet."""
    end = time.monotonic() + seconds
    found: Any = None
    while time.monotonic() < end:
        with suppress(httpx.HTTPError):
            found = look()
            if found:
                return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not after {seconds:.0f} s; last: {found!r}")
