"""What is applied to a cluster is valid by the Kubernetes schemas, and names what the pipelines name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kfp_server_api import V2beta1RecurringRun

from components import pools
from pipelines import wiring
from pipelines.compile import GOLDEN
from pipelines.remote import CRON_FIELDS

VERSION = "1.33"
KSERVE = {"minReplicas": int, "maxReplicas": int, "scaleMetric": str, "scaleTarget": int, "timeout": int}
"""KServe's own fields of a predictor that we use; all others are fields of a pod (serving.kserve.io/v1beta1)."""
SCALE_METRICS = {"cpu", "memory", "concurrency", "rps"}


def _objects(repository: Path) -> list[dict[str, Any]]:
    folder = repository / "deploy"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [row for name in names for row in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


def test_objects_are_valid(repository: Path) -> None:
    for row in _objects(repository):
        kubernetes_validate.validate(row, VERSION, strict=True)


def test_predictor_of_kserve_is_valid(repository: Path) -> None:
    """KServe's schema is no part of Kubernetes: its fields are checked here, the rest as the pod that it becomes."""
    text = (repository / "deploy" / "kserve" / "inferenceservice.yaml").read_text(encoding="utf-8")
    service = yaml.safe_load(text)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    (predictor,) = service["spec"].values()
    own = {name: predictor.pop(name) for name in KSERVE}
    assert {name: type(value) for name, value in own.items()} == KSERVE
    assert own["minReplicas"] <= own["maxReplicas"]
    assert own["scaleMetric"] in SCALE_METRICS
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": predictor}
    kubernetes_validate.validate(pod, VERSION, strict=True)


def test_kustomizations_name_files_that_are_there(repository: Path) -> None:
    files = list((repository / "deploy").rglob("kustomization.yaml"))
    assert files
    for file in files:
        for name in yaml.safe_load(file.read_text(encoding="utf-8"))["resources"]:
            assert (file.parent / name).is_file()


def test_objects_are_those_that_pipelines_mount(repository: Path) -> None:
    names = {(row["kind"], row["metadata"]["name"]) for row in _objects(repository)}
    claims = {("PersistentVolumeClaim", wiring.WORK_CLAIM), ("PersistentVolumeClaim", wiring.RELEASES_CLAIM)}
    assert claims | {("ConfigMap", wiring.POOLS)} <= names


def test_pools_of_the_cluster_are_read_by_preflight(repository: Path, tmp_path: Path) -> None:
    (table,) = (row["data"]["pools.yaml"] for row in _objects(repository) if row["kind"] == "ConfigMap")
    (tmp_path / "pools.yaml").write_text(table, encoding="utf-8")
    request = pools.choose("gpu", "2", "yes", tmp_path / "pools.yaml")
    assert request.node_selector == {"prefrestore.dev/pool": "gpu-spot"}


def test_secrets_have_the_keys_that_steps_read_and_no_values(repository: Path) -> None:
    text = (repository / "deploy" / "secrets.example.yaml").read_text(encoding="utf-8")
    found = {}
    for row in yaml.safe_load_all(text):
        kubernetes_validate.validate(row, VERSION, strict=True)
        found[row["metadata"]["name"]] = set(row["stringData"])
        assert set(row["stringData"].values()) == {""}
    platform = list(yaml.safe_load_all((GOLDEN / "full.yaml").read_text(encoding="utf-8")))[1]
    read: dict[str, set[str]] = {}
    for row in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        for secret in row.get("secretAsEnv", ()):
            read.setdefault(secret["secretName"], set()).update(each["secretKey"] for each in secret["keyToEnv"])
    assert found == read


def test_recurring_run_is_one_that_the_api_and_the_pipeline_know(repository: Path) -> None:
    text = (repository / "deploy" / "recurring-run.example.yaml").read_text(encoding="utf-8")
    body = yaml.safe_load(text)
    assert set(body) <= set(V2beta1RecurringRun.attribute_map.values())
    assert len(body["trigger"]["cron_schedule"]["cron"].split()) == CRON_FIELDS
    (spec, _) = yaml.safe_load_all((GOLDEN / "realign.yaml").read_text(encoding="utf-8"))
    known = spec["root"]["inputDefinitions"]["parameters"]
    given = body["runtime_config"]["parameters"]
    assert set(given) <= set(known)
    assert {name for name, row in known.items() if not row.get("isOptional")} <= set(given)
    assert all(isinstance(value, str) for value in given.values())
    accounts = {row["metadata"]["name"] for row in _objects(repository) if row["kind"] == "ServiceAccount"}
    assert body["service_account"] in accounts
