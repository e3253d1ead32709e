"""A person decides: a challenger becomes champion or is rejected; by hand also back to the champion before."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from prefrestore_loop import tasks
from prefrestore_loop.alerts import Alert
from prefrestore_loop.assets import CHALLENGER, CHAMPION
from prefrestore_loop.guards import guards
from prefrestore_loop.settings import settings

FORM = {
    "action": Param("decide", type="string", enum=["decide", "rollback"], title="What to do"),
    "version": Param(None, type=["integer", "null"], minimum=1, title="Version", description="empty: the challenger"),
    "why": Param("", type="string", title="Why", description="for the audit log; needed for a rollback"),
    "who": Param("airflow", type="string", minLength=1, title="Who", description="for the audit log"),
}
SHOWN = "ti.xcom_pull(task_ids='verdict')"

with DAG(dag_id="promote", schedule=[CHALLENGER], params=FORM, doc_md=__doc__, **guards("promote")):

    @task.branch
    def action(params=None):
        return "rollback" if params["action"] == "rollback" else "verdict"

    @task
    def verdict(params=None, triggering_asset_events=None):
        return tasks.look_at(params["version"], triggering_asset_events)

    approval = tasks.DecisionOperator(
        task_id="approval",
        subject=f"Promote {{{{ {SHOWN}['model'] }}}} version {{{{ {SHOWN}['number'] }}}}?",
        body=f"{{{{ {SHOWN}['text'] }}}}",
        options=["Promote", "Reject"],
        options_mapping={"Promote": "promote", "Reject": "reject"},
        params={"why": Param("", type="string", title="Why", description="for the audit log")},
        response_timeout=timedelta(hours=settings().approval_hours),
        notifiers=[Alert(f"{{{{ {SHOWN}['model'] }}}} version {{{{ {SHOWN}['number'] }}}} waits for a decision")],
        inlets=[CHALLENGER],
    )

    @task(inlets=[CHALLENGER], outlets=[CHAMPION], retries=2)
    def promote(ti=None, outlet_events=None):
        found, decision = ti.xcom_pull(task_ids="verdict"), ti.xcom_pull(task_ids="approval", key="decision")
        return tasks.promote(found, decision, outlet_events=outlet_events)

    @task
    def reject(ti=None):
        return tasks.reject(ti.xcom_pull(task_ids="verdict"), ti.xcom_pull(task_ids="approval", key="decision"))

    @task(outlets=[CHAMPION], retries=0)
    def rollback(params=None, outlet_events=None):
        return tasks.rollback(params["why"], params["who"], outlet_events=outlet_events)

    shown = verdict()
    action() >> [shown, rollback()]
    shown >> approval >> [promote(), reject()]
