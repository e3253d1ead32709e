"""Is the champion as good on fresh photographs as when it was released? If surely not, people are told."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, Param, task

from prefrestore_loop import tasks
from prefrestore_loop.assets import CHAMPION
from prefrestore_loop.guards import guards
from prefrestore_loop.settings import settings

NOW = settings()
FORM = {"data": Param(NOW.fresh_data, type="string", title="Photographs", description="folder of fresh photographs")}

with DAG(
    dag_id="champion_drift",
    schedule=NOW.drift_cron,
    start_date=datetime(2026, 1, 1),
    params=FORM,
    doc_md=__doc__,
    **guards("champion_drift"),
):

    @task(inlets=[CHAMPION])
    def evaluate(params=None, run_id=None):
        return tasks.measure_champion(params["data"], "".join(c if c.isalnum() else "-" for c in run_id))

    @task
    def judge(evaluation: str):
        return tasks.judge_drift(evaluation)

    judge(evaluate())
