"""A Kubeflow Trainer job of several nodes for one stage: rendered, created, waited for.

The step's own pod asks for no GPU; it shares the volume of checkpoints with the job's nodes, which is where inputs and
outputs are exchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from components.contract import stage_command
from prefrestore.errors import UserError
from prefrestore.stage import Stage

API = "trainer.kubeflow.org/v1alpha1"
RUNTIME = "torch-distributed"
CLAIM = "prefrestore-work"
SHARED = Path("/checkpoints")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_SECONDS = 10.0
ANSWER_SECONDS = 30.0


def render(name: str, arguments: list[str], job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the TrainJob; ``arguments`` are those of ``python -m``."""
    resources = {job["accelerator"]: str(job["gpus"])} if job["gpus"] else {}
    pod: dict[str, Any] = {
        "nodeSelector": job["node_selector"],
        "tolerations": job["tolerations"],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": CLAIM}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "work", "mountPath": str(SHARED)}]}],
    }
    template = {"spec": {"template": {"spec": pod}}}
    patch = {
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [{"name": "node", "template": template}]}}}
    }
    return {
        "apiVersion": API,
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": {
                "image": job["image"],
                "command": ["torchrun", "-m"],
                "args": arguments,
                "env": [{"name": "PREFRESTORE_CHECKPOINTS", "value": str(SHARED)}],
                "numNodes": job["nodes"],
                "numProcPerNode": max(1, job["gpus"]),
                "resourcesPerNode": {"limits": resources},
            },
            "runtimePatches": [{"manager": "prefrestore.dev/pipeline", **patch}],
        },
    }


def run(row: Stage, section: str, paths: Mapping[str, Path], job: Mapping[str, Any]) -> None:
    """Create the job, wait for it, and take over its outputs.

    Raises:
        UserError: no cluster, no shared volume, or the job failed.
    """
    if not SHARED.is_dir():
        raise UserError(f"{row.name}: trainer is trainjob but {SHARED} is not mounted: bind the claim {CLAIM}")
    key = hashlib.sha256(json.dumps([row.name, section, {k: str(v) for k, v in paths.items()}]).encode()).hexdigest()[
        :10
    ]
    name = f"{row.name.replace('_', '-')}-{key}"
    shared = {port: SHARED / "jobs" / name / port for port in paths}
    for port in row.inputs:
        shutil.copytree(paths[port], shared[port], dirs_exist_ok=True)
    _wait(_create(render(name, stage_command(row, section, shared), job)))
    for port in row.outputs:
        shutil.copytree(shared[port], paths[port], dirs_exist_ok=True)
    shutil.rmtree(SHARED / "jobs" / name)


def _create(manifest: Mapping[str, Any]) -> str:
    """Create the job and return its path; one that is there already, from before a retry, is taken."""
    folder = f"/apis/{API}/namespaces/{_namespace()}/trainjobs"
    path = f"{folder}/{manifest['metadata']['name']}"
    try:
        _call("POST", folder, manifest)
    except HTTPError as error:
        if error.code != 409:
            raise UserError(
                f"TrainJob: Kubernetes answered {error.code} {error.reason}: check rights and CRD"
            ) from None
    return path


def _wait(path: str) -> None:
    while True:
        conditions = {row["type"]: row for row in _call("GET", path).get("status", {}).get("conditions", ())}
        if conditions.get("Complete", {}).get("status") == "True":
            return
        if conditions.get("Failed", {}).get("status") == "True":
            _call("DELETE", path)
            raise UserError(f"TrainJob {path.rsplit('/', 1)[1]} failed: {conditions['Failed'].get('message', '')}")
        print(f"TrainJob {path.rsplit('/', 1)[1]}: waiting", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def _namespace() -> str:
    return (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()


def _call(method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host is None or not ACCOUNT.is_dir():
        raise UserError("trainer: trainjob needs a cluster with Kubeflow Trainer: use trainer pod")
    token = (ACCOUNT / "token").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    address = f"https://{host}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}{path}"
    request = Request(address, json.dumps(body).encode() if body else None, headers, method=method)
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urlopen(request, timeout=ANSWER_SECONDS, context=context) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
