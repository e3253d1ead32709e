"""The registry as teams run it, over the wire: MLflow on PostgreSQL, releases and files in S3."""

from __future__ import annotations

from prefrestore.registry.versions import Registry


def test_first(mlflow_server: str) -> None:
    assert Registry(mlflow_server).versions("nothing") == []
