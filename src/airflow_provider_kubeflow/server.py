"""Kubeflow Pipelines over the network: the part of REST v2beta1 that runs need."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from airflow_provider_kubeflow.errors import KubeflowUnavailableError, KubeflowUserError
from airflow_provider_kubeflow.runs import Request, Run, Step, that_counts

API = "apis/v2beta1"
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
BUSY = frozenset({408, 409, 429})
"""Too slow, too many, or another made the same thing at this moment: ask again."""
PAGE = 100


@dataclass(frozen=True)
class Server:
    """A server of Kubeflow Pipelines.

    Attributes:
        host: its address, with the path before ``apis``.
        token: bearer token; None: no login.
        token_path: file with the token, read anew for every request since service accounts' tokens rotate.
        namespace: of experiments and runs, where the server has several users.
        ui_url: address of the UI.
        ca_file: certificate authority; None: the system's.
    """

    host: str
    token: str | None = None
    token_path: str | None = None
    namespace: str | None = None
    ui_url: str | None = None
    ca_file: str | None = None

    def find(self, name: str) -> Run | None:
        """See :class:`runs.Api`."""
        rows = self._listed("runs", "runs", _named(name), **self._space())
        return that_counts([self.get(row["run_id"]) for row in rows if row.get("display_name") == name])

    def create(self, request: Request) -> Run:
        """See :class:`runs.Api`.

        Raises:
            KubeflowUserError: no such pipeline or version, no readable package, or the server refuses.
        """
        body = {
            "display_name": request.name,
            "experiment_id": self._experiment(request.experiment),
            "runtime_config": {"parameters": dict(request.arguments)},
            **self._what(request),
        }
        if request.service_account:
            body["service_account"] = request.service_account
        return run_of(self._call("POST", "runs", body=body))

    def get(self, number: str) -> Run:
        """See :class:`runs.Api`."""
        return run_of(self._call("GET", f"runs/{number}"))

    def terminate(self, number: str) -> None:
        """See :class:`runs.Api`."""
        if self.get(number).active:
            self._call("POST", f"runs/{number}:terminate")

    def link(self, number: str) -> str:
        """See :class:`runs.Api`."""
        return f"{(self.ui_url or self.host).rstrip('/')}/#/runs/details/{number}"

    def check(self) -> None:
        """Ask for health and for something that needs rights.

        Raises:
            KubeflowError: nobody answers, or refuses.
        """
        self._call("GET", "healthz")
        self._call("GET", "experiments", {"page_size": "1", **self._space()})

    # --- what a run is made of ----------------------------------------------------------------

    def _what(self, request: Request) -> dict[str, Any]:
        if request.package:
            return {"pipeline_spec": package_spec(Path(request.package))}
        pipeline = self._pipeline(request.pipeline or "")
        return {"pipeline_version_reference": {"pipeline_id": pipeline, **self._version(request, pipeline)}}

    def _pipeline(self, name: str) -> str:
        rows = self._listed("pipelines", "pipelines", _named(name), **self._space())
        for row in rows:
            if name in (row.get("display_name"), row.get("name")):
                return str(row["pipeline_id"])
        raise KubeflowUserError(f"{self.host}: there is no pipeline {name!r}: upload its package, or mend the name")

    def _version(self, request: Request, pipeline: str) -> dict[str, str]:
        """Return the reference's second half; without a version the server takes the newest."""
        if request.version is None:
            return {}
        path = f"pipelines/{pipeline}/versions"
        known = []
        for row in self._listed(path, "pipeline_versions", None, sort_by="created_at desc"):
            if row.get("pipeline_id", pipeline) != pipeline:
                continue
            if request.version in (row.get("display_name"), row.get("pipeline_version_id")):
                return {"pipeline_version_id": str(row["pipeline_version_id"])}
            known.append(str(row.get("display_name")))
        raise KubeflowUserError(
            f"{self.host}: pipeline {request.pipeline!r} has no version {request.version!r}: "
            f"choose from {', '.join(known[:5]) or 'none'}"
        )

    def _experiment(self, name: str) -> str:
        for row in self._listed("experiments", "experiments", _named(name), **self._space()):
            if row.get("display_name") == name:
                return str(row["experiment_id"])
        body = {"display_name": name, **self._space()}
        return str(self._call("POST", "experiments", body=body)["experiment_id"])

    def _space(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    # --- the wire -----------------------------------------------------------------------------

    def _listed(self, path: str, key: str, wanted: str | None, **query: str) -> Iterator[dict[str, Any]]:
        """Give all rows of a list, page by page."""
        query |= {"page_size": str(PAGE), **({"filter": wanted} if wanted else {})}
        while True:
            answer = self._call("GET", path, query)
            yield from answer.get(key) or ()
            if not answer.get("next_page_token"):
                return
            query |= {"page_token": answer["next_page_token"]}

    def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, *, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        address = f"{self.host.rstrip('/')}/{API}/{path}"
        try:
            verify = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
            with httpx.Client(timeout=TIMEOUT, headers=self._headers(), verify=verify) as client:
                answer = client.request(method, address, params=query, json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise KubeflowUserError(f"{self.host}: is no address of a server ({error}): mend the connection") from None
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}"
            raise KubeflowUnavailableError(f"{self.host}: Kubeflow Pipelines does not answer ({detail:.160})") from None
        except OSError as error:
            raise KubeflowUserError(f"{self.ca_file}: cannot be read ({error.strerror}): mend the connection") from None
        return self._understood(answer)

    def _understood(self, answer: httpx.Response) -> dict[str, Any]:
        code = answer.status_code
        if code >= 500 or code in BUSY:
            raise KubeflowUnavailableError(f"{self.host}: Kubeflow Pipelines answered {code}{_message(answer)}")
        if code in (401, 403):
            raise KubeflowUserError(
                f"{self.host}: refuses the token ({code}): mend the connection's token or token_path"
            )
        if 300 <= code < 400:
            raise KubeflowUserError(
                f"{self.host}: asks for a login ({code}): give the connection a token or token_path"
            )
        if code >= 400:
            raise KubeflowUserError(f"{self.host}: Kubeflow Pipelines refuses ({code}){_message(answer)}")
        try:
            content = answer.json() if answer.content else {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise KubeflowUserError(f"{self.host}: no Kubeflow Pipelines answers there: mend the connection's host")
        return content

    def _headers(self) -> dict[str, str]:
        token = self.token
        if self.token_path:
            try:
                token = Path(self.token_path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise KubeflowUserError(
                    f"{self.token_path}: no token there ({error.strerror}): mend the connection's token_path"
                ) from None
        return {"Authorization": f"Bearer {token}"} if token else {}


def package_spec(path: Path) -> dict[str, Any]:
    """Return a compiled package in the form that the interface takes.

    Raises:
        KubeflowUserError: it cannot be read, or is no package.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is no YAML"
        raise KubeflowUserError(f"{path}: is no compiled package ({reason}): compile the pipeline") from None
    if not documents or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
        raise KubeflowUserError(f"{path}: is no compiled package (no pipelineInfo): compile the pipeline")
    if len(documents) == 1:
        return dict(documents[0])
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}


def run_of(row: Mapping[str, Any]) -> Run:
    """Return a run from the server's answer."""
    details = (row.get("run_details") or {}).get("task_details") or ()
    steps = [Step(str(task.get("display_name", "")), str(task.get("state", "")), _error(task)) for task in details]
    return Run(
        str(row["run_id"]),
        str(row.get("display_name", "")),
        str(row.get("state", "RUNTIME_STATE_UNSPECIFIED")),
        _error(row),
        tuple(step for step in steps if step.name and step.state),
    )


def _error(row: Mapping[str, Any]) -> str:
    return " ".join(str((row.get("error") or {}).get("message", "")).split())


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def _message(answer: httpx.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return ""
    text = content.get("message") or content.get("error") if isinstance(content, dict) else None
    return f": {' '.join(str(text).split()):.200}" if text else ""
