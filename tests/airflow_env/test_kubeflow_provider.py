"""The provider against a Kubeflow over the wire, with faults, and against this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import TaskDeferred

from airflow_provider_kubeflow import errors, runs
from airflow_provider_kubeflow.hooks import KubeflowHook
from airflow_provider_kubeflow.operators import KubeflowRunOperator, failure
from airflow_provider_kubeflow.runs import Request, Run, Step, start_once
from airflow_provider_kubeflow.triggers import KubeflowRunTrigger
from support.kubeflow import SMALLEST_PACKAGE

CONN = "AIRFLOW_CONN_KUBEFLOW_DEFAULT"


class Context(dict):
    """What execute needs of a context."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        super().__init__(ti=SimpleNamespace(xcom_push=lambda key, value: self.pushed.__setitem__(key, value)))


def operator(**arguments: Any) -> KubeflowRunOperator:
    return KubeflowRunOperator(**{"task_id": "t", "pipeline": "realign", "run_name": "n", "poll": 0.05, **arguments})


def quick(api: Any, request: Request) -> tuple[Run, bool]:
    return start_once(api, request, pause=0.01)


# --- once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [["500"], ["cut"], ["500", "cut", "500"], ["cut"] * 5])
def test_a_failing_interface_makes_one_run(kubeflow: Any, faults: list[str]) -> None:
    kubeflow.proxy.only = "POST /apis/v2beta1/runs"
    kubeflow.proxy.faults.extend(faults)
    run, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    assert list(kubeflow.runs) == [run.number]


def test_a_second_submission_finds_the_first(kubeflow: Any) -> None:
    first, known = quick(KubeflowHook().api(), Request("n", "realign", arguments={"a": "b"}))
    assert not known
    assert quick(KubeflowHook().api(), Request("n", "realign")) == (first, True)
    kubeflow.runs[first.number]["state"] = "SUCCEEDED"
    assert quick(KubeflowHook().api(), Request("n", "realign"))[1]
    assert quick(KubeflowHook().api(), Request("other", "realign"))[0].number != first.number
    assert kubeflow.runs[first.number]["runtime_config"] == {"parameters": {"a": "b"}}


def test_a_failed_run_is_submitted_again(kubeflow: Any) -> None:
    first, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    kubeflow.runs[first.number]["state"] = "FAILED"
    assert quick(KubeflowHook().api(), Request("n", "realign"))[0].number != first.number


def test_it_gives_up_when_nobody_ever_answers(kubeflow: Any) -> None:
    kubeflow.proxy.faults.extend(["500"] * 50)
    with pytest.raises(errors.KubeflowUnavailableError, match="answered 500: fault of the test"):
        start_once(KubeflowHook().api(), Request("n", "realign"), tries=3, pause=0.01)


def test_a_package_goes_as_it_is_compiled(kubeflow: Any, tmp_path: Path) -> None:
    package = tmp_path / "p.yaml"
    package.write_text(f"{SMALLEST_PACKAGE}---\nplatforms: {{}}\n")
    run, _ = quick(KubeflowHook().api(), Request("n", package=str(package)))
    spec = kubeflow.runs[run.number]["pipeline_spec"]
    assert spec == {"pipeline_spec": yaml.safe_load(SMALLEST_PACKAGE), "platform_spec": {"platforms": {}}}


# --- bad input: one line, no retry -------------------------------------------------------------


def connection(**fields: Any) -> str:
    return json.dumps({"conn_type": "kubeflow", **fields})


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (None, "connection 'kubeflow_default' does not exist: add one of type kubeflow"),
        (connection(), "has no host"),
        (connection(host="http://x", extra={"backend": "cloud"}), "backend 'cloud' is neither kubeflow nor local"),
        (connection(extra={"backend": "local"}), "backend local needs program in extra"),
        (connection(extra={"backend": "local", "program": "/no", "folder": "/"}), "/no: is no program"),
        (connection(extra={"backend": "local", "program": "/bin/ls", "folder": "/no"}), "/no: is no folder"),
        (connection(host="http://x", extra={"token_path": "/no/token"}), "/no/token: no token there"),
        (connection(host="http://x", extra={"ca_file": "/no/ca"}), "/no/ca: cannot be read"),
    ],
)
def test_a_bad_connection_is_one_line(variable: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONN, raising=False)
    if variable is not None:
        monkeypatch.setenv(CONN, variable)
    _fails_at_once(operator(), message)


def _fails_at_once(task: KubeflowRunOperator, message: str) -> None:
    with pytest.raises(errors.KubeflowUserError) as caught:
        task.execute(Context())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert task.retry_policy.evaluate(caught.value, 1, 3).action is RetryAction.FAIL


def test_a_wrong_token_is_one_line(kubeflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONN, connection(host=kubeflow.proxy.url, password="another"))
    _fails_at_once(operator(), "refuses the token (401)")
    assert len(kubeflow.state.requests) == 0


def test_a_token_in_a_file_is_read_for_every_request(kubeflow: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """As service accounts' tokens are: they rotate."""
    file = tmp_path / "token"
    monkeypatch.setenv(CONN, connection(host=kubeflow.proxy.url, extra={"token_path": str(file)}))
    api = KubeflowHook().api()
    for token in ("one", "two"):
        kubeflow.proxy.token = token
        file.write_text(f"{token}\n")
        assert api.find("n") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pipeline": "nothing"}, "there is no pipeline 'nothing'"),
        ({"version": "v9"}, "pipeline 'realign' has no version 'v9': choose from realign"),
        ({"pipeline": None}, "give either pipeline or package"),
        ({"package": "/p.yaml"}, "give either pipeline or package"),
        ({"pipeline": None, "package": "/no/p.yaml"}, "/no/p.yaml: is no compiled package (No such file"),
        ({"pipeline": None, "package": __file__}, "is no compiled package"),
    ],
)
def test_what_does_not_exist_is_one_line(kubeflow: Any, arguments: dict[str, Any], message: str) -> None:
    _fails_at_once(operator(**arguments), message)
    assert kubeflow.runs == {}


def test_the_form_can_try_a_connection(kubeflow: Any) -> None:
    assert KubeflowHook().test_connection() == (True, "Kubeflow Pipelines answers")
    kubeflow.proxy.token = "changed"
    assert KubeflowHook().test_connection()[0] is False


def test_networks_and_machines_are_tried_again_and_nothing_else() -> None:
    policy = errors.retry_policy()
    again = {errors.KubeflowUnavailableError, errors.KubeflowRunPreemptedError}
    for kind in (*again, errors.KubeflowRunFailedError, errors.KubeflowRunCanceledError, errors.KubeflowUserError):
        wanted = RetryAction.RETRY if kind in again else RetryAction.FAIL
        assert policy.evaluate(kind("x"), 1, 3).action is wanted, kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("Pod was terminated in response to imminent node shutdown.", errors.KubeflowRunPreemptedError),
        ("The node was low on resource: memory", errors.KubeflowRunPreemptedError),
        ("pod deleted", errors.KubeflowRunPreemptedError),
        ("main: Error (exit code 2)", errors.KubeflowRunFailedError),
        ("", errors.KubeflowRunFailedError),
    ],
)
def test_lost_machines_are_told_from_mistakes(error: str, kind: type) -> None:
    found = failure(Run("1", "n", "FAILED", steps=(Step("align", "FAILED", error),)))
    assert type(found) is kind
    assert "align" in str(found)
    assert "\n" not in str(found)


# --- operator and trigger ------------------------------------------------------------------------


def test_the_operator_defers_and_takes_the_result(kubeflow: Any) -> None:
    context, task = Context(), operator()
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    (number,) = kubeflow.runs
    assert context.pushed["_link_KubeflowRunLink"] == f"{kubeflow.proxy.url}/#/runs/details/{number}"
    trigger = deferred.value.trigger
    path, arguments = trigger.serialize()
    assert path == "airflow_provider_kubeflow.triggers.KubeflowRunTrigger"
    assert KubeflowRunTrigger(**arguments).serialize() == trigger.serialize()
    kubeflow.runs[number]["state"] = "SUCCEEDED"
    assert task.ended(context, _event(trigger)) == number


def _event(trigger: KubeflowRunTrigger) -> dict[str, Any]:
    async def first() -> Any:
        return (await anext(trigger.run())).payload

    return asyncio.run(asyncio.wait_for(first(), 20))


def _kfp_steps(*rows: tuple[str, str]) -> dict[str, Any]:
    return {"task_details": [{"display_name": name, "state": state} for name, state in rows]}


def test_the_trigger_bears_faults_and_logs_what_steps_do(kubeflow: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    row = kubeflow.runs[run.number]
    row |= {"state": "FAILED", "run_details": _kfp_steps(("train-reward", "SUCCEEDED"), ("align", "FAILED"))}
    kubeflow.proxy.faults.extend(["500", "cut", "500"])
    event = _event(KubeflowRunTrigger("kubeflow_default", run.number, poll=0.01, patience=5))
    assert event == {"number": run.number, "ended": "FAILED"}
    told = "".join(capfd.readouterr())
    assert [word in told for word in ("answered 500", "train-reward: SUCCEEDED", "align: FAILED")] == [True] * 3
    with pytest.raises(errors.KubeflowRunFailedError, match="align: FAILED"):
        operator().ended(Context(), event)


def test_changes_are_told_once() -> None:
    run = Run("1", "n", "RUNNING", steps=(Step("a", "RUNNING"), Step("b", "PENDING")))
    assert runs.changes({}, run) == ["a: RUNNING", "b: PENDING"]
    assert runs.changes(runs.states(run), run) == []


def test_a_server_that_stays_silent_is_given_up(kubeflow: Any) -> None:
    run, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    kubeflow.proxy.faults.extend(["500"] * 500)
    event = _event(KubeflowRunTrigger("kubeflow_default", run.number, poll=0.01, patience=0.1))
    with pytest.raises(errors.KubeflowUnavailableError, match="answered 500"):
        operator().ended(Context(), event)


def test_a_run_that_vanished_is_no_endless_wait(kubeflow: Any) -> None:
    event = _event(KubeflowRunTrigger("kubeflow_default", "runs-9", poll=0.01))
    with pytest.raises(errors.KubeflowUserError, match="refuses \\(404\\): runs/runs-9: not found"):
        operator().ended(Context(), event)
    assert kubeflow.runs == {}


def test_a_killed_task_ends_its_run(kubeflow: Any) -> None:
    run, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    asyncio.run(KubeflowRunTrigger("kubeflow_default", run.number).on_kill())
    assert kubeflow.runs[run.number]["state"] == "CANCELED"
    task = operator(run_name="m")
    with pytest.raises(TaskDeferred):
        task.execute(Context())
    task.on_kill()
    assert [row["state"] for row in kubeflow.runs.values()] == ["CANCELED"] * 2


def test_without_a_triggerer_the_worker_waits(kubeflow: Any) -> None:
    run, _ = quick(KubeflowHook().api(), Request("n", "realign"))
    kubeflow.runs[run.number] |= {"state": "RUNNING"}
    task = operator(deferrable=False)
    kubeflow.proxy.only = "GET /apis/v2beta1/runs/"
    kubeflow.proxy.faults.extend(["none", "500", "cut"])

    def finish(request: str) -> str:
        kubeflow.runs[run.number]["state"] = "SUCCEEDED" if not kubeflow.proxy.faults else "RUNNING"
        return type(kubeflow.proxy).fault(kubeflow.proxy, request)

    kubeflow.proxy.fault = finish
    assert task.execute(Context()) == run.number


# --- this machine ----------------------------------------------------------------------------------

LINES = ["Executing task \x1b[96m'preflight'\x1b[0m", "Task \x1b[96m'preflight'\x1b[0m finished with status SUCCESS"]


def _wait(api: Any, number: str) -> Run:
    end = time.monotonic() + 20
    while (run := api.get(number)).active:
        assert time.monotonic() < end
        time.sleep(0.05)
    return run


def test_local_runs_are_started_once_and_told_step_by_step(stand_in: Any) -> None:
    stand_in.answer(pipeline_run={"lines": LINES, "value": {"state": "SUCCEEDED"}})
    api = KubeflowHook().api()
    run, known = quick(api, Request("a name: x/1", "realign", arguments={"preset": "smoke"}))
    assert not known
    run = _wait(api, run.number)
    assert (run.state, run.steps) == ("SUCCEEDED", (Step("preflight", "SUCCEEDED"),))
    assert quick(api, Request("a name: x/1", "realign")) == (run, True)
    assert stand_in.asked == [["pipeline", "run", "realign", "--param=preset=smoke", "--json"]]
    assert Path(api.link(run.number).removeprefix("file://")).is_dir()


def test_a_local_failure_says_why_and_may_be_tried_again(stand_in: Any) -> None:
    stand_in.answer(pipeline_run={"code": 2, "message": "prefrestore: realign: needs artifacts_uri"})
    api = KubeflowHook().api()
    run = _wait(api, quick(api, Request("n", "realign"))[0].number)
    assert (run.state, run.error) == ("FAILED", "prefrestore: realign: needs artifacts_uri")
    assert type(failure(run)) is errors.KubeflowRunFailedError
    assert quick(api, Request("n", "realign"))[0].number != run.number


@pytest.fixture
def sleeping(stand_in: Any) -> Any:
    """A run that does not end by itself."""
    stand_in.path.write_text("#!/bin/sh\nsleep 600\n")
    api = KubeflowHook().api()
    run, _ = quick(api, Request("n", "realign"))
    end = time.monotonic() + 20
    while not _children(api, run.number):
        assert time.monotonic() < end
        time.sleep(0.05)
    return api, run.number


def _process(api: Any, number: str) -> int:
    return int(json.loads((api.jobs / number / "state.json").read_text())["process"])


def _children(api: Any, number: str) -> list[int]:
    process = _process(api, number)
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_local_run_is_ended_with_all_that_it_started(sleeping: Any) -> None:
    api, number = sleeping
    children = _children(api, number)
    api.terminate(number)
    assert _wait(api, number).state == "CANCELED"
    assert all(_gone(child) for child in children)
    api.terminate(number)


def test_a_local_run_that_was_killed_is_tried_again(sleeping: Any) -> None:
    api, number = sleeping
    children = _children(api, number)
    os.kill(_process(api, number), signal.SIGKILL)
    run = _wait(api, number)
    assert type(failure(run)) is errors.KubeflowRunPreemptedError
    for child in children:
        os.kill(child, signal.SIGKILL)


def test_local_runs_know_no_versions(stand_in: Any) -> None:
    with pytest.raises(errors.KubeflowUserError, match="knows no versions"):
        quick(KubeflowHook().api(), Request("n", "realign", "v1"))
    assert stand_in.asked == []
