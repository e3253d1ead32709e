"""New judgements of people: the base is aligned with them, and a challenger may come of it."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_provider_kubeflow.operators import KubeflowRunOperator
from prefrestore_loop import tasks
from prefrestore_loop.assets import CHALLENGER, PREFERENCES
from prefrestore_loop.guards import guards
from prefrestore_loop.settings import settings

NOW = settings()
CHECKED = "ti.xcom_pull(task_ids='check_preferences')['watermark']"

with DAG(
    dag_id="realign_on_preferences",
    schedule=[PREFERENCES],
    doc_md=__doc__,
    **guards("realign_on_preferences"),
):

    @task(inlets=[PREFERENCES])
    def check_preferences(triggering_asset_events=None):
        return tasks.check_preferences(NOW.store, triggering_asset_events)

    @task(inlets=[PREFERENCES, CHALLENGER], outlets=[CHALLENGER])
    def challenger(run: str, inlet_events=None, outlet_events=None):
        return tasks.announce_challenger(run, inlet_events=inlet_events, outlet_events=outlet_events)

    realign = KubeflowRunOperator(
        task_id="realign",
        pipeline="realign",
        version=NOW.pipeline_version,
        # an event that comes twice names the same work
        run_name=f"realign_on_preferences.{{{{ {CHECKED} or run_id }}}}",
        arguments={
            "artifacts_uri": NOW.artifacts,
            "preset": NOW.preset,
            "changes": NOW.changes,
            "votes": NOW.store,
            "data_version": f"{{{{ {CHECKED} }}}}",
            **NOW.places(),
        },
        experiment="pref-restore",
        poll=NOW.run_poll_seconds,
        retries=3,
    )
    check_preferences() >> realign
    challenger(realign.output)
