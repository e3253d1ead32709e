"""The DAGs: cheap to import, no circle among them, and each runs to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"
NAMES = ("champion_drift", "nightly_retrain", "promote", "realign_on_preferences")
HEAVY = ("torch", "kfp", "prefrestore", "components", "pipelines", "pandas", "numpy", "boto3", "mlflow", "pyarrow")
PROBE = """
import sys, time
import airflow.sdk, airflow.dag_processing.dagbag, airflow.providers.standard.operators.hitl, httpx
started = time.process_time()
__import__(sys.argv[1])
print(time.process_time() - started, *sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


@pytest.fixture(scope="session")
def bag() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(DAGS, collect_dags=True)


def test_all_dags_load(bag: Any) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_imported_within_a_second_and_loads_nothing_heavy(name: str) -> None:
    """Seconds of processor time beside Airflow itself, which its processor has loaded; the best of three."""

    def probe() -> list[str]:
        command = [sys.executable, "-c", PROBE, name, *HEAVY]
        done = subprocess.run(command, cwd=DAGS, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1].split()

    seconds, *loaded = min((probe() for _ in range(3)), key=lambda words: float(words[0]))
    assert loaded == []
    assert float(seconds) < 1


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
    dag = bag.dags[name]
    # Airflow 3.3 looks deadlines up by the id that only its processor of DAGs gives them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dag, "deadline", None)
        run = dag.test(run_conf=conf or None)
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


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
