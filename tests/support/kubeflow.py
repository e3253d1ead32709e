"""A Kubeflow Pipelines server (REST v2beta1) whose back half runs the compiled package with kfp's local runner.

Enough for kfp's own client: health, experiments, pipelines and versions, runs (create, get, terminate, retry),
recurring runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

NOW = "2026-01-01T00:00:00Z"
Answer = tuple[int, dict[str, Any]]


class RefusedError(Exception):
    """The answer is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeKubeflow:
    """The server's state; one process per run."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.tables: dict[str, dict[str, dict[str, Any]]] = {
            name: {} for name in ("experiments", "pipelines", "versions", "runs", "recurringruns")
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    # --- resources ----------------------------------------------------------------------------

    def add(self, table: str, key: str, row: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            number = f"{table}-{len(self.tables[table]) + 1}"
            self.tables[table][number] = {key: number, "created_at": NOW, **row}
            return self.tables[table][number]

    def get(self, table: str, number: str) -> dict[str, Any]:
        try:
            return self.tables[table][number]
        except KeyError:
            raise RefusedError(404, f"{table}/{number}: not found") from None

    def version_of(self, reference: dict[str, str]) -> dict[str, Any]:
        versions = [
            row for row in self.tables["versions"].values() if row["pipeline_id"] == reference.get("pipeline_id")
        ]
        wanted = reference.get("pipeline_version_id")
        chosen = [row for row in versions if wanted in (None, row["pipeline_version_id"])]
        if not chosen:
            raise RefusedError(404, f"no such version: {reference}")
        return chosen[-1]

    # --- runs ---------------------------------------------------------------------------------

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = body.get("pipeline_spec") or self.version_of(body["pipeline_version_reference"])["pipeline_spec"]
        parameters = body.get("runtime_config", {}).get("parameters", {})
        row = {**body, "pipeline_spec": spec, "runtime_config": {"parameters": parameters}, "state": "PENDING"}
        run = self.add("runs", "run_id", {"experiment_id": next(iter(self.tables["experiments"]), ""), **row})
        self.start(run)
        return self.seen(run)

    def start(self, run: dict[str, Any]) -> None:
        number = run["run_id"]
        package = self.folder / f"{number}.yaml"
        spec = run["pipeline_spec"]
        documents = [spec["pipeline_spec"], spec["platform_spec"]] if "pipeline_spec" in spec else [spec]
        package.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        parameters = [f"--param={name}={value}" for name, value in run["runtime_config"]["parameters"].items()]
        command = [sys.executable, "-m", "prefrestore", "pipeline", "run", str(package), *parameters]
        with (self.folder / f"{number}.log").open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [*command, "--root", str(self.folder / "root")],
                cwd=self.project,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        run["state"] = "RUNNING"

    def seen(self, run: dict[str, Any]) -> dict[str, Any]:
        code = self.processes[run["run_id"]].poll()
        if run["state"] == "RUNNING" and code is not None:
            run["state"] = "SUCCEEDED" if code == 0 else "FAILED"
            run["finished_at"] = NOW
        return run

    def terminate(self, number: str) -> dict[str, Any]:
        run = self.seen(self.get("runs", number))
        if run["state"] != "RUNNING":
            raise RefusedError(400, f"run {number} is {run['state']}")
        os.killpg(self.processes[number].pid, signal.SIGKILL)
        self.processes[number].wait()
        run["state"] = "CANCELED"
        return {}

    def retry(self, number: str) -> dict[str, Any]:
        run = self.seen(self.get("runs", number))
        if run["state"] not in ("FAILED", "CANCELED"):
            raise RefusedError(400, f"run {number} is {run['state']}")
        self.start(run)
        return {}

    def log(self, number: str) -> str:
        return (self.folder / f"{number}.log").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # --- pipelines ----------------------------------------------------------------------------

    def upload(self, query: dict[str, str], package: bytes) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(package))
        spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if documents[1:] else documents[0]
        if "pipelineid" not in query:
            row = {"display_name": query["name"], "name": query["name"]}
            pipeline = self.add("pipelines", "pipeline_id", row)
        else:
            pipeline = self.get("pipelines", query["pipelineid"])
        version = {"pipeline_id": pipeline["pipeline_id"], "display_name": query["name"], "pipeline_spec": spec}
        made = self.add("versions", "pipeline_version_id", version)
        return made if "pipelineid" in query else pipeline

    def listed(self, table: str, query: dict[str, str]) -> dict[str, Any]:
        rows = list(self.tables[table].values())
        predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
        for wanted in predicates:
            value = wanted.get("stringValue", wanted.get("string_value"))
            rows = [row for row in rows if value in (row.get("display_name"), row.get("name"))]
        key = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}.get(table, table)
        return {key: rows, "total_size": len(rows)}

    def recurring(self, body: dict[str, Any]) -> dict[str, Any]:
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise RefusedError(400, "cron: six fields")
        if "pipeline_version_reference" in body:
            self.version_of(body["pipeline_version_reference"])
        return self.add("recurringruns", "recurring_run_id", {**body, "status": "ENABLED"})


def _routes(state: FakeKubeflow) -> list[tuple[str, str, Callable[..., dict[str, Any]]]]:
    """Return method, path and handler; the handler gets the path's groups, the query and the body."""
    return [
        ("GET", r"healthz", lambda *_: {"multi_user": False}),
        ("GET", r"(experiments|pipelines|runs|recurringruns)", lambda t, q, _: state.listed(t, q)),
        ("POST", r"experiments", lambda _, b: state.add("experiments", "experiment_id", b)),
        ("GET", r"(experiments|pipelines|recurringruns)/([^/:]+)", lambda t, n, *_: state.get(t, n)),
        ("GET", r"pipelines/[^/]+/versions", lambda q, _: state.listed("versions", q)),
        ("POST", r"pipelines/upload(?:_version)?", lambda q, b: state.upload(q, b)),
        ("POST", r"runs", lambda _, b: state.create_run(b)),
        ("GET", r"runs/([^/:]+)", lambda n, *_: state.seen(state.get("runs", n))),
        ("POST", r"runs/([^/:]+):terminate", lambda n, *_: state.terminate(n)),
        ("POST", r"runs/([^/:]+):retry", lambda n, *_: state.retry(n)),
        ("POST", r"recurringruns", lambda _, b: state.recurring(b)),
        ("POST", r"recurringruns/([^/:]+):(?:enable|disable)", lambda n, *_: state.get("recurringruns", n) and {}),
    ]


def serve(state: FakeKubeflow) -> ThreadingHTTPServer:
    """Start the server on a free port; ``shutdown`` ends it."""
    routes = _routes(state)

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            address = urlparse(self.path)
            path = address.path.removeprefix("/apis/v2beta1/")
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            state.requests.append(f"{self.command} {path}")
            try:
                self._answer(200, self._routed(path, query))
            except RefusedError as error:
                self._answer(error.status, {"error": str(error), "message": str(error)})

        def _routed(self, path: str, query: dict[str, str]) -> dict[str, Any]:
            for method, pattern, handler in routes:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    return handler(*found.groups(), query, self._body())
            raise RefusedError(404, f"{self.command} {path}: not here")

        def _body(self) -> Any:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/"):
                parts = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
                return parts.get_payload()[0].get_payload(decode=True)
            return json.loads(raw) if raw else {}

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _handle  # noqa: N815  the names of http.server

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
