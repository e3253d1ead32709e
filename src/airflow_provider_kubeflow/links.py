"""The button that leads from a task to its run."""

from __future__ import annotations

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.types import TaskInstanceKey


class KubeflowRunLink(BaseOperatorLink):
    """Leads to the run in Kubeflow's UI; the operator leaves the address under :attr:`xcom_key`."""

    name = "Kubeflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  Airflow's signature
        """Return nothing of its own: Airflow reads the address from XCom."""
        return ""
