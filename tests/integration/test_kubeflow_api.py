"""kfp's own client and ``prefrestore pipeline submit | schedule`` against a server of the published REST contract.

The server's back half runs the package it was given; one run does so with the real stages, and its metrics are those
of ``dvc repro``.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import pytest
import yaml
from kfp_server_api.exceptions import ApiException

from pipelines.compile import GOLDEN
from prefrestore import artifacts
from prefrestore.stage import ARTIFACTS
from support.kubeflow import FakeKubeflow, serve

# The group in which the finished graph is made.
pytestmark = pytest.mark.xdist_group("graph")

REALIGN = GOLDEN / "realign.yaml"
RUN_SECONDS = 900.0


@pytest.fixture
def server(graph: Path, tmp_path: Path) -> Iterator[tuple[FakeKubeflow, str]]:
    """A server that works in a folder beside a finished graph, and its address."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "presets").symlink_to(graph / "presets")
    state = FakeKubeflow(tmp_path / "work", tmp_path)
    http = serve(state)
    yield state, f"http://127.0.0.1:{http.server_port}"
    state.close()
    http.shutdown()


@pytest.fixture
def client(server: tuple[FakeKubeflow, str]) -> kfp.Client:
    """kfp's own client."""
    return kfp.Client(host=server[1])


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A package with one step, which waits until the file ``go`` is there."""
    package = tmp_path / "slow.yaml"
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"
    container = {"image": "none", "command": ["python3", "-c"], "args": [wait]}
    task = {"cachingOptions": {}, "componentRef": {"name": "comp-wait"}, "taskInfo": {"name": "wait"}}
    optional = {"parameterType": "STRING", "defaultValue": "", "isOptional": True}
    spec = {
        "components": {"comp-wait": {"executorLabel": "exec-wait"}},
        "deploymentSpec": {"executors": {"exec-wait": {"container": container}}},
        "pipelineInfo": {"name": "slow"},
        "root": {"dag": {"tasks": {"wait": task}}, "inputDefinitions": {"parameters": {"word": optional}}},
        "schemaVersion": "2.1.0",
        "sdkVersion": "kfp-2.17.0",
    }
    package.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return package


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_real_client_creates_polls_terminates_and_retries(server, client: kfp.Client, slow: Path) -> None:
    state, _ = server
    made = client.create_run_from_pipeline_package(str(slow), run_name="one", experiment_name="mine")
    assert client.get_run(made.run_id).state == "RUNNING"
    with pytest.raises(ApiException) as refused:
        client._run_api.run_service_retry_run(made.run_id)
    assert refused.value.status == 400

    client.terminate_run(made.run_id)
    ended = client.get_run(made.run_id)
    assert (ended.state, ended.display_name) == ("CANCELED", "one")
    assert state.processes[made.run_id].returncode is not None

    client._run_api.run_service_retry_run(made.run_id)
    assert client.get_run(made.run_id).state == "RUNNING"
    (state.project / "go").touch()
    assert client.wait_for_run_completion(made.run_id, 120, 1).state == "SUCCEEDED"

    found = client.list_runs(experiment_id=client.get_experiment(experiment_name="mine").experiment_id)
    assert [run.run_id for run in found.runs] == [made.run_id]
    client.archive_run(made.run_id)
    assert client.get_run(made.run_id).storage_state == "ARCHIVED"


def test_pipelines_versions_and_recurring_runs(client: kfp.Client, slow: Path) -> None:
    pipeline = client.upload_pipeline(str(slow), pipeline_name="slow")
    assert client.get_pipeline_id("slow") == pipeline.pipeline_id
    assert client.get_pipeline_id("other") is None
    for number in range(12):
        client.upload_pipeline_version(str(slow), f"v{number}", pipeline_id=pipeline.pipeline_id)
    with pytest.raises(ApiException) as refused:
        client.upload_pipeline_version(str(slow), "v1", pipeline_id=pipeline.pipeline_id)
    assert refused.value.status == 409
    page = client.list_pipeline_versions(pipeline.pipeline_id, sort_by="created_at desc")
    assert page.pipeline_versions[0].display_name == "v11"
    assert (len(page.pipeline_versions), page.total_size) == (10, 13)
    rest = client.list_pipeline_versions(pipeline.pipeline_id, page_token=page.next_page_token)
    assert len(rest.pipeline_versions) == 3

    experiment = client.create_experiment("mine")
    chosen = {"pipeline_id": pipeline.pipeline_id, "version_id": page.pipeline_versions[0].pipeline_version_id}
    made = client.create_recurring_run(experiment.experiment_id, "nightly", cron_expression="0 0 3 * * *", **chosen)
    number = made.recurring_run_id
    client.disable_recurring_run(number)
    assert client.get_recurring_run(number).status == "DISABLED"
    client.enable_recurring_run(number)
    assert client.get_recurring_run(number).status == "ENABLED"
    client.delete_recurring_run(number)
    assert not client.list_recurring_runs(experiment_id=experiment.experiment_id).recurring_runs


ANSWERS = {
    "healthz": "V2beta1GetHealthzResponse",
    "experiments": "V2beta1ListExperimentsResponse",
    "pipelines": "V2beta1ListPipelinesResponse",
    "pipelines/names/slow": "V2beta1Pipeline",
    "pipelines/{pipeline}": "V2beta1Pipeline",
    "pipelines/{pipeline}/versions": "V2beta1ListPipelineVersionsResponse",
    "pipelines/{pipeline}/versions/{version}": "V2beta1PipelineVersion",
    "runs": "V2beta1ListRunsResponse",
    "runs/{run}": "V2beta1Run",
    "recurringruns": "V2beta1ListRecurringRunsResponse",
    "recurringruns/{recurring}": "V2beta1RecurringRun",
}


def test_answers_are_those_of_the_published_contract(server, client: kfp.Client, slow: Path) -> None:
    """Every key is one that the generated model has, with a value of the model's type."""
    _, address = server
    pipeline = client.upload_pipeline(str(slow), pipeline_name="slow").pipeline_id
    version = client.list_pipeline_versions(pipeline).pipeline_versions[0].pipeline_version_id
    experiment = client.create_experiment("mine").experiment_id
    chosen = {"pipeline_id": pipeline, "version_id": version}
    run = client.run_pipeline(experiment, "one", **chosen).run_id
    recurring = client.create_recurring_run(experiment, "nightly", cron_expression="0 0 3 * * *", **chosen)
    names = {"pipeline": pipeline, "version": version, "run": run, "recurring": recurring.recurring_run_id}
    for path, model in ANSWERS.items():
        with urllib.request.urlopen(f"{address}/apis/v2beta1/{path.format(**names)}") as answer:
            _is(json.load(answer), model, path)


def _is(value: Any, kind: str, where: str) -> None:
    """Check a JSON value against a type as the generated client spells it."""
    if kind.startswith("list["):
        for row in value:
            _is(row, kind[5:-1], where)
    elif kind in ("str", "datetime"):
        assert isinstance(value, str), where
    elif kind in ("int", "bool"):
        assert type(value).__name__ == kind, where
    elif hasattr(model := getattr(kfp_server_api, kind, None), "openapi_types") and model.openapi_types:
        types = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}
        assert value, where
        for key, inner in value.items():
            assert key in types, f"{where}: {kind} has no {key}"
            _is(inner, types[key], f"{where}.{key}")
    elif model is not None:
        assert value in {getattr(model, name) for name in dir(model) if name.isupper()}, f"{where}: {value}"


# --- the project's commands ------------------------------------------------------------------------


def test_submit_prints_the_number_alone_and_waits(server, slow: Path, tmp_path: Path, program) -> None:
    state, address = server
    (state.project / "go").touch()
    where = ["--host", address, "--experiment", "mine", "--account", "prefrestore-runner"]
    done = program("pipeline", "submit", slow, *where, "--wait", "120", "-p", "word=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = state.tables["runs"].values()
    assert done.stdout == f"{run['run_id']}\n"
    assert (run["service_account"], run["state"]) == ("prefrestore-runner", "SUCCEEDED")
    assert run["runtime_config"]["parameters"] == {"word": "x"}
    assert "RUNNING" in done.stderr


def test_waiting_ends_when_somebody_terminates_the_run(server, slow: Path, tmp_path: Path) -> None:
    """kfp's own waiting does not."""
    import subprocess

    state, address = server
    command = [sys.executable, "-m", "prefrestore", "pipeline", "submit", str(slow), "--host", address, "--wait", "120"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as waiting:
        _until(lambda: any(row["state"] == "RUNNING" for row in state.tables["runs"].values()))
        (run,) = state.tables["runs"]
        state.terminate(run)
        _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 2
    assert said.splitlines()[-1] == f"prefrestore: run {run}: CANCELED: its steps' logs say why"


def test_schedule_takes_the_place_of_the_one_before(server, client: kfp.Client, tmp_path: Path, program) -> None:
    state, address = server
    arguments = ["pipeline", "schedule", "full", "--host", address, "--name", "nightly", "--cron"]
    numbers = []
    for cron in ("0 0 3 * * *", "0 0 4 * * *"):
        done = program(*arguments, cron, "-p", "preset=smoke", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        numbers.append(done.stdout.strip())
    (left,) = state.tables["recurringruns"].values()
    assert left["recurring_run_id"] == numbers[1]
    assert left["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert left["runtime_config"]["parameters"]["preset"] == "smoke"
    # One package, one version of it; the schedule names exactly that one.
    named = [row for row in state.tables["versions"].values() if row["display_name"].startswith("nightly-")]
    assert [row["pipeline_version_id"] for row in named] == [left["pipeline_version_reference"]["pipeline_version_id"]]
    assert client.get_recurring_run(numbers[1]).max_concurrency == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "nonsense", "--host", "{host}"], "nonsense: is neither a pipeline"),
        (["submit", "realign", "--host", "{host}"], "realign: needs artifacts_uri"),
        (
            ["submit", "full", "--host", "{host}", "-p", "colour=red"],
            "--param: colour=red: write NAME=VALUE with one of",
        ),
        (["submit", "full", "--host", "http://127.0.0.1:9"], "http://127.0.0.1:9: Kubeflow Pipelines does not answer"),
        (["schedule", "full", "--host", "{host}", "--cron", "0 3 * * *"], "has 5 fields: Kubeflow wants six"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, server, tmp_path: Path, program) -> None:
    done = program("pipeline", *(word.format(host=server[1]) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert server[0].tables["runs"] == {}


def test_a_refused_token_and_the_servers_own_words(server, slow: Path, tmp_path: Path, program) -> None:
    state, address = server
    state.token = "right"
    submit = ["pipeline", "submit", slow, "--host", address]
    refused = program(*submit, cwd=tmp_path, KFP_TOKEN="wrong")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        "Kubeflow answered 401 Unauthorized: check $KFP_TOKEN and the namespace"
    )
    assert program(*submit, cwd=tmp_path, KFP_TOKEN="right").returncode == 0


# --- the back half runs the real stages --------------------------------------------------------------


def test_submitted_realign_gives_the_metrics_of_dvc_repro(
    server, client: kfp.Client, graph: Path, tmp_path: Path, program
) -> None:
    state, address = server
    given = ["-p", f"artifacts_uri={graph / 'artifacts'}", "-p", "preset=smoke"]
    done = program("pipeline", "submit", "realign", "--host", address, *given, "--wait", str(RUN_SECONDS), cwd=tmp_path)
    log = state.log(next(iter(state.processes)))
    assert done.returncode == 0, f"{done.stderr}\n{log[-6000:]}"
    assert client.get_run(done.stdout.strip()).state == "SUCCEEDED"
    (root,) = (tmp_path / "root").glob("prefrestore-realign-*")
    for step, port in {"evaluate": "metrics", "align": "policy", "gate": "verdict", "publish": "release"}.items():
        assert artifacts.digest(root / step / port) == artifacts.digest(graph / ARTIFACTS[port].path), port
    numbers = artifacts.read_json(root / "evaluate" / "metrics" / "metrics.json")["columns"]
    assert numbers == artifacts.read_json(graph / "reports" / "metrics.json")["columns"]
