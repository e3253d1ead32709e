"""Everything is trained anew: every night, or by hand with a form."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, Param, task

from airflow_provider_kubeflow.operators import KubeflowRunOperator
from prefrestore_loop import tasks
from prefrestore_loop.assets import CHALLENGER
from prefrestore_loop.guards import guards
from prefrestore_loop.settings import settings

NOW = settings()
FORM = {
    "preset": Param(NOW.preset, type="string", enum=["smoke", "tiny", "portrait", "full"], title="Size of everything"),
    "data_uri": Param("", type="string", title="Images", description="folder or s3:// prefix; empty: the preset's own"),
    "changes": Param(NOW.changes, type="string", title="Changes", description='JSON: {"align": {"epochs": 20}}'),
    "gpu_pool": Param("cpu", type="string", minLength=1, title="Pool of GPU nodes"),
    "gpu_count": Param(0, type="integer", minimum=0, maximum=64, title="GPUs per step"),
    "spot": Param("no", type="string", enum=["no", "yes"], title="Preemptible nodes"),
    "version": Param(NOW.pipeline_version, type="string", title="Pipeline version", description="empty: the newest"),
}
FIELDS = ("preset", "data_uri", "changes", "gpu_pool", "gpu_count", "spot")

with DAG(
    dag_id="nightly_retrain",
    schedule=NOW.retrain_cron,
    start_date=datetime(2026, 1, 1),
    params=FORM,
    doc_md=__doc__,
    **guards("nightly_retrain"),
):
    full = KubeflowRunOperator(
        task_id="full",
        pipeline="full",
        version="{{ params.version }}",
        arguments={**{name: f"{{{{ params.{name} }}}}" for name in FIELDS}, **NOW.places()},
        experiment="pref-restore",
        poll=NOW.run_poll_seconds,
        retries=3,
    )

    @task(inlets=[CHALLENGER], outlets=[CHALLENGER])
    def challenger(run: str, inlet_events=None, outlet_events=None):
        return tasks.announce_challenger(run, inlet_events=inlet_events, outlet_events=outlet_events)

    challenger(full.output)
