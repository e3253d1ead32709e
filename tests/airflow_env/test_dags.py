"""The DAGs: cheap to import, no circle among them; each runs to its end, and what a person must mend fails once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kubeflow.errors import retry_policy

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "dags"
NAMES = ("champion_drift", "nightly_retrain", "promote", "realign_on_preferences")
HEAVY = ("torch", "kfp", "prefrestore", "components", "pipelines", "pandas", "numpy", "boto3", "mlflow", "pyarrow")
PROBE = """
import sys, time
import airflow.sdk, airflow.dag_processing.dagbag, airflow.providers.standard.operators.hitl, httpx
started = time.process_time()
__import__(sys.argv[1])
print(time.process_time() - started, *sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


@pytest.fixture
def bag() -> Any:
    """DAGs of the test's own: a run in this process leaves its form in them."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(DAGS, collect_dags=True)


def test_all_dags_load(bag: Any) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_imported_within_a_second_and_loads_nothing_heavy(name: str) -> None:
    """Seconds of processor time beside Airflow itself, which its processor has loaded; the best of three."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, name, *HEAVY], cwd=DAGS, capture_output=True, text=True, check=True
        )
        seconds, *loaded = done.stdout.splitlines()[-1].split()
        assert loaded == []
        if float(seconds) < 1:
            return
    pytest.fail(f"{name}: {seconds} s")


def test_no_asset_leads_back_to_itself(bag: Any) -> None:
    """DAG by DAG: which assets start it, and which it may emit."""
    steps: dict[str, set[str]] = {}
    for dag in bag.dags.values():
        emitted = {asset.name for task in dag.tasks for asset in task.outlets}
        for asset in _starters(dag):
            steps.setdefault(asset, set()).update(emitted)
    assert steps == {
        "prefrestore_preferences": {"prefrestore_challenger"},
        "prefrestore_challenger": {"prefrestore_champion"},
    }


def _starters(dag: Any) -> list[str]:
    condition = getattr(dag.timetable, "asset_condition", None)
    return [asset.name for asset in condition.objects] if condition else []


def test_every_dag_is_watched_over(bag: Any) -> None:
    for dag in bag.dags.values():
        assert dag.max_active_runs == 1
        assert not dag.catchup
        assert dag.deadline
        assert all(task.on_failure_callback for task in dag.tasks)


def _version(number: int, *aliases: str) -> dict[str, Any]:
    digest = f"d{number}-{time.time_ns()}"  # a digest that was announced before is not announced again
    return {"number": number, "digest": digest, "source": f"s3://b/{digest}", "aliases": aliases, "tags": {}}


def _model_list() -> dict[str, Any]:
    return {"value": {"model": "m", "versions": [_version(1, "champion"), _version(2, "challenger")]}}


ANSWERS: dict[str, dict[str, Any]] = {
    "pipeline_run": {"value": {"state": "SUCCEEDED"}},
    "prefs_stats": {"value": {"valid": 9, "judgements": 9, "shards": 1, "set_aside": []}},
    "prefs_validate": {"value": {"checks": [{"name": "ok", "success": True, "rows": []}]}},
    "model_list": _model_list(),
    "model_rollback": {"value": {"model": "m", "champion": 1, "previous": 2}},
    "model_drift": {"value": {"version": "m version 1", "worse": [], "metrics": []}},
    "evaluate": {},
}


def _test(bag: Any, name: str, **conf: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in _tested(bag, name, **conf)}


def _tested(bag: Any, name: str, **conf: Any) -> list[Any]:
    """Run a DAG to its end with ``dag.test()`` and return its tasks."""
    dag = bag.dags[name]
    # Airflow 3.3 looks deadlines up by the id that only its processor of DAGs gives them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dag, "deadline", None)
        return list(dag.test(run_conf=conf or None).get_task_instances())


def test_nightly_retrain_runs(bag: Any, stand_in: Any) -> None:
    stand_in.answer(**ANSWERS)
    assert set(_test(bag, "nightly_retrain", preset="smoke", spot="yes").values()) == {"success"}
    asked = next(words for words in stand_in.asked if words[:3] == ["pipeline", "run", "full"])
    assert {"--param=preset=smoke", "--param=spot=yes", "--param=gpu_count=0"} <= set(asked)


def test_realign_runs(bag: Any, stand_in: Any) -> None:
    stand_in.answer(**{**ANSWERS, "model_list": _model_list()})
    assert set(_test(bag, "realign_on_preferences").values()) == {"success"}
    asked = [words[:3] for words in stand_in.asked]
    assert asked[:3] == [["prefs", "validate", "votes"], ["prefs", "stats", "votes"], ["pipeline", "run", "realign"]]


def test_a_failed_gate_announces_nothing(bag: Any, stand_in: Any, webhook: Any) -> None:
    versions = {"model": "m", "versions": [_version(1, "champion")]}
    stand_in.answer(**{**ANSWERS, "model_list": {"value": versions}})
    assert _test(bag, "nightly_retrain")["challenger"] == "skipped"
    assert any("its gate did not pass" in line for line in webhook.lines)


def test_rollback_runs(bag: Any, stand_in: Any) -> None:
    stand_in.answer(**ANSWERS)
    states = _test(bag, "promote", action="rollback", why="worse", who="rita")
    assert (states["rollback"], states["verdict"], states["promote"]) == ("success", "skipped", "skipped")
    assert stand_in.asked == [["model", "rollback", "--why", "worse", "--who", "rita", "--json"]]


@contextmanager
def _somebody_chooses(option: str, why: str) -> Iterator[None]:
    """Answer questions as Airflow's REST interface does; again if it was too early for ``dag.test()`` to see it."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.trigger import handle_event_submit
    from airflow.triggers.base import TriggerEvent
    from airflow.utils.session import create_session

    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.2):
            with create_session() as session:
                for detail in session.query(HITLDetail).filter(HITLDetail.task_instance.has(state="awaiting_input")):
                    detail.chosen_options, detail.params_input = [option], {"why": why}
                    detail.responded_by, detail.responded_at = {"id": "7", "name": "rita"}, datetime.now(UTC)
                    event = TriggerEvent(detail.as_resume_event_payload())
                    handle_event_submit(event, task_instance=detail.task_instance, session=session)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("option", "done", "left"), [("Promote", "promote", "reject"), ("Reject", "reject", "promote")]
)
def test_promote_runs_as_a_person_decides(bag: Any, stand_in: Any, option: str, done: str, left: str) -> None:
    verdict = {"sentence": "Passed.", "comparisons": []}
    shown = {
        "model": "m",
        "number": 2,
        "report": "r",
        "page": None,
        "verdict": verdict,
        "champion": 1,
        "previous": None,
    }
    after = {"value": {"champion": 2, "previous": 1}}
    stand_in.answer(**ANSWERS, model_show={"value": shown}, model_promote=after, model_reject=after)
    with _somebody_chooses(option, "because"):
        states = _test(bag, "promote", version=2)
    assert (states[done], states[left], states["rollback"]) == ("success", "skipped", "skipped")
    asked = [words for words in stand_in.asked if words[1] in ("promote", "reject")]
    assert [words[:7] for words in asked] == [["model", done, "2", "--why", "because", "--who", "rita"]]


def test_champion_drift_runs_and_tells(bag: Any, stand_in: Any, webhook: Any) -> None:
    row = {"metric": "psnr", "released": 21.0, "now": 17.5, "worse": True}
    drifted = {"version": "m version 1", "worse": ["psnr"], "metrics": [row]}
    stand_in.answer(**{**ANSWERS, "model_drift": {"value": drifted}})
    assert set(_test(bag, "champion_drift", data="/fresh").values()) == {"success"}
    assert stand_in.asked[1][:5] == ["evaluate", "--model", "models:/m@champion", "--data", "/fresh"]
    assert webhook.lines == ["m version 1 drifts on fresh data: psnr 21 -> 17.5"]


def test_an_unreadable_store_fails_once_with_one_line(bag: Any, stand_in: Any, webhook: Any) -> None:
    message = "prefrestore: s3://b/p: S3 refuses these credentials (403): check the keys and their rights"
    stand_in.answer(**{**ANSWERS, "prefs_validate": {"code": 2, "message": message}})
    states = _test(bag, "realign_on_preferences")
    assert (states["check_preferences"], states["realign"]) == ("failed", "upstream_failed")
    assert stand_in.asked == [["prefs", "validate", "votes", "--json"]]
    assert any(message in line for line in webhook.lines)


def test_a_missing_connection_fails_once_with_one_line(bag: Any, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_PREFRESTORE", raising=False)
    assert _test(bag, "promote", action="rollback", why="w", who="x")["rollback"] == "failed"
    assert "connection 'prefrestore' does not exist" in "".join(capfd.readouterr())


# --- on a server --------------------------------------------------------------------------------

WAITS = timedelta(seconds=1)


@pytest.fixture
def full(kubeflow: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch, bag: Any) -> Any:
    """A server with the real package ``full``; the next try comes a second after the first."""
    value = {"conn_type": "kubeflow", "host": kubeflow.proxy.url, "password": kubeflow.proxy.token}
    monkeypatch.setenv(KUBEFLOW, json.dumps(value))
    monkeypatch.setattr(bag.dags["nightly_retrain"].task_dict["full"], "retry_policy", retry_policy(WAITS))
    kubeflow.state.upload({"name": "full"}, (ROOT / "pipelines" / "compiled" / "full.yaml").read_bytes())
    stand_in.answer(**{**ANSWERS, "model_list": _model_list()})
    return kubeflow


KUBEFLOW = "AIRFLOW_CONN_KUBEFLOW_DEFAULT"


def _wrong_token(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(KUBEFLOW, json.dumps({"conn_type": "kubeflow", "host": url, "password": "another"}))


def _no_connection(monkeypatch: pytest.MonkeyPatch, url: str) -> None:  # noqa: ARG001  as the others
    monkeypatch.delenv(KUBEFLOW)


def _all_is_well(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The mistake is in the form."""


@pytest.mark.parametrize(
    ("broken", "conf", "message"),
    [
        (_wrong_token, {}, "refuses the token (401): mend the connection's token or token_path"),
        (_no_connection, {}, "connection 'kubeflow_default' does not exist: add one of type kubeflow"),
        (_all_is_well, {"version": "v9"}, "pipeline 'full' has no version 'v9': choose from full"),
    ],
)
def test_what_a_person_must_mend_fails_once_with_one_line(  # noqa: PLR0913  fixtures and cases
    bag: Any,
    full: Any,
    webhook: Any,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., None],
    conf: dict[str, str],
    message: str,
) -> None:
    broken(monkeypatch, full.proxy.url)
    found = {ti.task_id: (str(ti.state), ti.try_number) for ti in _tested(bag, "nightly_retrain", **conf)}
    assert found["full"] == ("failed", 1)
    (told,) = webhook.lines
    assert told.startswith("nightly_retrain.full failed in ")
    assert message in told
    assert full.runs == {}


def _ends(full: Any, *errors: str) -> None:
    """Let the runs fail with these messages, one after the other; an empty one ends well."""
    left = list(errors)

    def start(run: dict[str, Any]) -> None:
        error = left.pop(0)
        run |= {"state": "FAILED", "error": {"message": error}} if error else {"state": "SUCCEEDED"}

    full.state.start = start


def test_lost_machines_are_tried_again_by_a_new_run(bag: Any, full: Any) -> None:
    _ends(full, "Pod was terminated in response to imminent node shutdown.", "")
    found = {ti.task_id: (str(ti.state), ti.try_number) for ti in _tested(bag, "nightly_retrain")}
    assert found == {"full": ("success", 2), "challenger": ("success", 1)}
    assert [run["state"] for run in full.runs.values()] == ["FAILED", "SUCCEEDED"]


def test_a_step_that_fails_by_itself_is_not_tried_again(bag: Any, full: Any, webhook: Any) -> None:
    _ends(full, "This step is in Failed state with this message: main: Error (exit code 2)", "")
    found = {ti.task_id: (str(ti.state), ti.try_number) for ti in _tested(bag, "nightly_retrain")}
    assert found["full"] == ("failed", 1)
    assert [run["state"] for run in full.runs.values()] == ["FAILED"]
    assert "exit code 2" in webhook.lines[0]
