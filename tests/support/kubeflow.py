"""A Kubeflow Pipelines server (REST v2beta1) whose back half runs the compiled package with kfp's local runner.

Enough for kfp's own client and for Airflow's operator: health, experiments, pipelines and versions, runs (create, get,
list, terminate, retry, archive), recurring runs. Every answer is one that the models of kfp_server_api know
(``tests/integration/test_kubeflow_api.py`` holds it), and an error has the form of the real server's.
"""

from __future__ import annotations

import itertools
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

GRPC = {400: 3, 401: 16, 404: 5, 409: 6}
"""Code in the body of an error, by HTTP status."""
PAGE_SIZE = 10
SMALLEST_PACKAGE = """pipelineInfo: {name: p}
root: {inputDefinitions: {parameters: {a: {parameterType: STRING, isOptional: true}}}}
"""
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
        self.token: str | None = None
        """Bearer token that requests must carry; None: anybody may ask."""
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)

    # --- resources ----------------------------------------------------------------------------

    def add(self, table: str, key: str, row: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            number = f"{table}-{next(self.numbers)}"
            self.tables[table][number] = {key: number, "created_at": NOW, **row}
            return self.tables[table][number]

    def get(self, table: str, number: str) -> dict[str, Any]:
        try:
            return self.tables[table][number]
        except KeyError:
            raise RefusedError(404, f"{table}/{number}: not found") from None

    def by_name(self, name: str) -> dict[str, Any]:
        for row in self.tables["pipelines"].values():
            if row["name"] == name:
                return row
        raise RefusedError(404, f"pipelines/{name}: not found")

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
        check_parameters(spec, parameters)
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
        run |= {"state": "CANCELED", "finished_at": NOW}
        return {}

    def retry(self, number: str) -> dict[str, Any]:
        run = self.seen(self.get("runs", number))
        if run["state"] not in ("FAILED", "CANCELED"):
            raise RefusedError(400, f"run {number} is {run['state']}")
        run.pop("finished_at", None)
        self.start(run)
        return {}

    def archive(self, number: str) -> dict[str, Any]:
        self.get("runs", number)["storage_state"] = "ARCHIVED"
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
        if "pipelineid" in query:
            pipeline = self.get("pipelines", query["pipelineid"])
        else:
            pipeline = self.new("pipelines", "pipeline_id", query["name"], {})
        row = {"pipeline_id": pipeline["pipeline_id"], "pipeline_spec": spec}
        version = self.new("versions", "pipeline_version_id", query["name"], row)
        return version if "pipelineid" in query else pipeline

    def new(self, table: str, key: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """Add a row whose name is the only one of its kind; a version's within its pipeline."""
        for other in self.tables[table].values():
            if other["display_name"] == name and other.get("pipeline_id") == row.get(
                "pipeline_id", other["pipeline_id"]
            ):
                raise RefusedError(409, f"{table}: the name {name} already exists")
        return self.add(table, key, {"display_name": name, "name": name, **row})

    def listed(self, table: str, query: dict[str, str], **fixed: str) -> dict[str, Any]:
        """Return one page of rows, newest last, that the filter and the experiment of the query leave."""
        rows = [row for row in self.tables[table].values() if fixed.items() <= row.items()]
        if experiment := query.get("experiment_id"):
            rows = [row for row in rows if row["experiment_id"] == experiment]
        for wanted in json.loads(query.get("filter") or "{}").get("predicates", []):
            if wanted["operation"] not in ("EQUALS", 1):
                raise RefusedError(400, f"filter: {wanted['operation']} is not here")
            value = wanted.get("stringValue", wanted.get("string_value"))
            rows = [row for row in rows if row.get(wanted["key"]) == value]
        if table == "runs":
            rows = [self.seen(row) for row in rows]
        if query.get("sort_by", "").endswith(" desc"):
            rows.reverse()
        first, size = int(query.get("page_token") or 0), int(query.get("page_size") or PAGE_SIZE)
        key = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}.get(table, table)
        more = {"next_page_token": str(first + size)} if first + size < len(rows) else {}
        return {key: rows[first : first + size], "total_size": len(rows), **more}

    def recurring(self, body: dict[str, Any]) -> dict[str, Any]:
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise RefusedError(400, "cron: six fields")
        spec = body.get("pipeline_spec") or self.version_of(body["pipeline_version_reference"])["pipeline_spec"]
        check_parameters(spec, body["runtime_config"]["parameters"])
        # An int64 is text in the JSON of protocol buffers.
        row = {**body, "status": "ENABLED", "max_concurrency": str(body["max_concurrency"])}
        return self.add("recurringruns", "recurring_run_id", row)

    def switch(self, number: str, status: str) -> dict[str, Any]:
        self.get("recurringruns", number)["status"] = status
        return {}

    def delete(self, table: str, number: str) -> dict[str, Any]:
        self.get(table, number)
        del self.tables[table][number]
        return {}


def check_parameters(spec: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse parameters that the pipeline does not know, and a run without one that it needs."""
    try:
        known = spec.get("pipeline_spec", spec)["root"].get("inputDefinitions", {}).get("parameters", {})
    except KeyError:
        raise RefusedError(400, "the package has no root: it is no compiled pipeline") from None
    if unknown := set(given) - set(known):
        raise RefusedError(400, f"parameter {min(unknown)} is not an input of the pipeline")
    for name, row in known.items():
        if name not in given and not row.get("isOptional"):
            raise RefusedError(400, f"parameter {name} is not optional, yet has neither default value nor user value")


def _routes(state: FakeKubeflow) -> list[tuple[str, str, Callable[..., dict[str, Any]]]]:
    """Return method, path and handler; the handler gets the path's groups, the query and the body."""
    return [
        ("GET", r"healthz", lambda *_: {"multi_user": False, "pipeline_store": "database"}),
        ("GET", r"(experiments|pipelines|runs|recurringruns)", lambda t, q, _: state.listed(t, q)),
        ("POST", r"experiments", lambda _, b: state.add("experiments", "experiment_id", b)),
        ("GET", r"(experiments|pipelines|recurringruns)/([^/:]+)", lambda t, n, *_: state.get(t, n)),
        ("GET", r"pipelines/names/([^/]+)", lambda n, *_: state.by_name(n)),
        ("GET", r"pipelines/([^/]+)/versions", lambda p, q, _: state.listed("versions", q, pipeline_id=p)),
        ("GET", r"pipelines/[^/]+/versions/([^/]+)", lambda v, *_: state.get("versions", v)),
        ("POST", r"pipelines/upload(?:_version)?", lambda q, b: state.upload(q, b)),
        ("POST", r"runs", lambda _, b: state.create_run(b)),
        ("GET", r"runs/([^/:]+)", lambda n, *_: state.seen(state.get("runs", n))),
        ("POST", r"runs/([^/:]+):terminate", lambda n, *_: state.terminate(n)),
        ("POST", r"runs/([^/:]+):retry", lambda n, *_: state.retry(n)),
        ("POST", r"runs/([^/:]+):archive", lambda n, *_: state.archive(n)),
        ("POST", r"recurringruns", lambda _, b: state.recurring(b)),
        ("POST", r"recurringruns/([^/:]+):(enable|disable)", lambda n, s, *_: state.switch(n, f"{s.upper()}D")),
        ("DELETE", r"recurringruns/([^/:]+)", lambda n, *_: state.delete("recurringruns", n)),
    ]


def answer(state: FakeKubeflow, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
    """Return what the server says to a request."""
    for known, pattern, handler in _routes(state):
        found = re.fullmatch(pattern, path)
        if known == method and found:
            return handler(*found.groups(), query, body)
    raise RefusedError(404, f"{method} {path}: not here")


class Handler(BaseHTTPRequestHandler):
    """Requests and answers of the state that a subclass names."""

    state: FakeKubeflow

    def _handle(self) -> None:
        address = urlparse(self.path)
        path = address.path.removeprefix("/apis/v2beta1/")
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.state.requests.append(f"{self.command} {path}")
        body = self._body()
        try:
            if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
                raise RefusedError(401, "the request has no valid token")
            self._answer(200, answer(self.state, self.command, path, query, body))
        except RefusedError as error:
            words = {"error": str(error), "message": str(error), "details": []}
            self._answer(error.status, {**words, "code": GRPC[error.status]})

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


def serve(state: FakeKubeflow) -> ThreadingHTTPServer:
    """Start the server on a free port; ``shutdown`` ends it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
