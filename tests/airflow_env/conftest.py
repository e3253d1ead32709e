"""Tests that import Airflow; tests/contracts/test_airflow.py runs them in Airflow's own environment."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# DAGs read it when they are imported
os.environ["PREFRESTORE_LOOP_RUN_POLL_SECONDS"] = "0.2"

if importlib.util.find_spec("airflow") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from support.faults import FaultyProxy, Webhook
    from support.kubeflow import SMALLEST_PACKAGE, FakeKubeflow, serve

TOKEN = "a-token"
PROGRAM = """#!{python}
# Stands in for the program: it answers as ANSWERS says and writes down what it was asked.
import json, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "asked.jsonl").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((here / "answers.json").read_text())
answer = answers[" ".join(sys.argv[1:3])] if " ".join(sys.argv[1:3]) in answers else answers[sys.argv[1]]
for line in answer.get("lines", ()):
    print(line, flush=True)
if "message" in answer:
    print(answer["message"], file=sys.stderr)
if "value" in answer:
    print(json.dumps(answer["value"]))
sys.exit(answer.get("code", 0))
"""


class StandIn:
    """A program that answers from a table."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "program"
        self.path.write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def answer(self, **answers: dict[str, Any]) -> None:
        """Set answers by command; ``_`` stands for a blank."""
        table = {name.replace("_", " "): answer for name, answer in answers.items()}
        (self.folder / "answers.json").write_text(json.dumps(table), encoding="utf-8")

    @property
    def asked(self) -> list[list[str]]:
        """What it was asked, in order."""
        path = self.folder / "asked.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for the program, in both connections."""
    folder = tmp_path / "program"
    folder.mkdir()
    program = StandIn(folder)
    extra = {"program": str(program.path), "folder": str(folder)}
    monkeypatch.setenv("AIRFLOW_CONN_PREFRESTORE", json.dumps({"conn_type": "generic", "extra": extra}))
    local = {"conn_type": "kubeflow", "extra": {"backend": "local", **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(local))
    return program


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook in the connection."""
    hook = Webhook()
    secret = json.dumps({"conn_type": "http", "password": hook.url})
    monkeypatch.setenv("AIRFLOW_CONN_PREFRESTORE_WEBHOOK", secret)
    yield hook
    hook.close()


class Server:
    """A Kubeflow whose runs end when the test says so, behind a proxy that fails on demand."""

    def __init__(self, folder: Path) -> None:
        class Scripted(FakeKubeflow):
            def start(self, run: dict[str, Any]) -> None:
                run["state"] = "RUNNING"

            def seen(self, run: dict[str, Any]) -> dict[str, Any]:
                return run

            def terminate(self, number: str) -> dict[str, Any]:
                self.tables["runs"][number]["state"] = "CANCELED"
                return {}

        self.state = Scripted(folder, folder)
        self.server = serve(self.state)
        self.proxy = FaultyProxy(f"http://127.0.0.1:{self.server.server_port}", TOKEN)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """All runs by id."""
        return self.state.tables["runs"]

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.proxy.close()


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a pipeline ``realign`` in one version, in the connection."""
    server = Server(tmp_path)
    server.state.upload({"name": "realign"}, SMALLEST_PACKAGE.encode())
    value = {"conn_type": "kubeflow", "host": server.proxy.url, "password": TOKEN}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(value))
    yield server
    server.close()
