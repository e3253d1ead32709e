"""What every DAG of the loop has: alerts on failure and on a missed deadline."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference

from prefrestore_loop.alerts import Alert
from prefrestore_loop.settings import settings

FAILED = "{{ ti.dag_id }}.{{ ti.task_id }} failed in {{ run_id }}: {{ exception if exception is defined else '' }}"


def guards(dag_id: str) -> dict[str, Any]:
    """Return the arguments of ``DAG`` that watch over it."""
    hours = settings().deadline_hours
    late = Alert(f"{dag_id}: a run has taken more than {hours:g} hours")
    return {
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {"on_failure_callback": [Alert(FAILED)], "owner": "prefrestore"},
        "deadline": DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=hours),
            callback=AsyncCallback(Alert, kwargs={"text": late.text}),
        ),
        "tags": ["prefrestore"],
    }
