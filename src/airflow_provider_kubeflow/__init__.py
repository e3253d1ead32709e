"""Airflow provider for Kubeflow Pipelines: knows Airflow and the REST interface v2beta1, and nothing of who uses it."""

from __future__ import annotations

from typing import Any

CONNECTION = "kubeflow"


def provider_info() -> dict[str, Any]:
    """Return what Airflow's provider manager asks for."""
    text: dict[str, Any] = {"type": ["string", "null"]}
    fields = {
        "backend": {"label": "Backend: kubeflow or local", "schema": {**text, "enum": ["kubeflow", "local", None]}},
        "namespace": {"label": "Namespace of experiments and runs", "schema": text},
        "token_path": {"label": "File with the service account's token", "schema": text},
        "ui_url": {"label": "Address of the UI, if another than the host", "schema": text},
        "ca_file": {"label": "File with the server's certificate authority", "schema": text},
        "program": {"label": "Backend local: the program that has `pipeline run`", "schema": text},
        "folder": {"label": "Backend local: folder to run it in", "schema": text},
    }
    return {
        "package-name": "airflow-provider-kubeflow",
        "name": "Kubeflow Pipelines",
        "description": "Runs of Kubeflow Pipelines (v2beta1), or of the same packages on this machine.",
        "connection-types": [
            {
                "connection-type": CONNECTION,
                "hook-class-name": "airflow_provider_kubeflow.hooks.KubeflowHook",
                "hook-name": "Kubeflow Pipelines",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"password": "Token"},
                    "placeholders": {"host": "https://kubeflow.example.org/pipeline"},
                },
                "conn-fields": fields,
            }
        ],
        "extra-links": ["airflow_provider_kubeflow.links.KubeflowRunLink"],
    }
