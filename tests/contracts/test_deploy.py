"""What is applied to a cluster is valid by the Kubernetes schemas, and names what the pipelines name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from components import pools
from pipelines import wiring

VERSION = "1.33"


def _objects(repository: Path) -> list[dict[str, Any]]:
    folder = repository / "deploy"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [row for name in names for row in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


def test_objects_are_valid(repository: Path) -> None:
    for row in _objects(repository):
        kubernetes_validate.validate(row, VERSION, strict=True)


def test_objects_are_those_that_pipelines_mount(repository: Path) -> None:
    names = {(row["kind"], row["metadata"]["name"]) for row in _objects(repository)}
    claims = {("PersistentVolumeClaim", wiring.WORK_CLAIM), ("PersistentVolumeClaim", wiring.RELEASES_CLAIM)}
    assert claims | {("ConfigMap", wiring.POOLS)} <= names


def test_pools_of_the_cluster_are_read_by_preflight(repository: Path, tmp_path: Path) -> None:
    (table,) = (row["data"]["pools.yaml"] for row in _objects(repository) if row["kind"] == "ConfigMap")
    (tmp_path / "pools.yaml").write_text(table, encoding="utf-8")
    request = pools.choose("gpu", "2", "yes", tmp_path / "pools.yaml")
    assert request.node_selector == {"prefrestore.dev/pool": "gpu-spot"}
