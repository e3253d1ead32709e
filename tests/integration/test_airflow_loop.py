"""The loop runs by itself and a person decides: real Airflow services on PostgreSQL, S3 and MLflow over the wire.

Kubeflow is a server whose back half really runs the compiled package. Faults happen on the way: too few judgements,
shards that arrive twice, a damaged shard, an interface that answers 500 and cuts connections, killed services. The
run takes longer than the deadline, so that its alert is given too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
import yaml

from conftest import POSTGRESQL, Program
from prefrestore import configfile
from prefrestore.config import Config
from prefrestore.data.images import encode_png
from prefrestore.data.preferences import Judgement, pair_id
from prefrestore.data.vote_store import append
from prefrestore.reward_model.dataset import load_candidates
from prefrestore.runtime import storage
from prefrestore.stage import STAGES, execute
from support.airflow_services import PASSWORD, QUICK, USER, Airflow, airflow_environment, connection, eventually
from support.faults import FaultyProxy, Webhook
from support.kubeflow import FakeKubeflow, serve
from support.net import free_port
from support.releases import candidate

# One worker of pytest-xdist takes all of this file.
pytestmark = pytest.mark.xdist_group("airflow")

BUCKET, STORE, RELEASES, MODEL = "loop", "s3://loop/team", "s3://loop/releases", "loop-restorer"
MINIMUM = 8
DEADLINE = "0.01"
"""Hours; training takes longer."""
EARLIER = ("ingest", "degrade", "train_codec", "train_baseline", "pretrain", "sample_candidates")
SHORT = {"steps": 8}
TOKEN = "a-token-of-the-tests"


@dataclass
class Loop:
    """Everything that runs."""

    airflow: Airflow
    kubeflow: FakeKubeflow
    proxy: FaultyProxy
    webhook: Webhook
    folder: Path
    judgements: list[Judgement]
    s3: Any


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Path:
    """A folder with the configuration and a run's artifacts up to the candidates, trained for a moment only."""
    folder = tmp_path_factory.mktemp("loop") / "project"
    (folder / "presets").mkdir(parents=True)
    values = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    values["ingest"] |= {"num_train": 24}
    for section in (values["train_codec"], values["train_codec"]["tokenizer"], values["train_baseline"]):
        section |= SHORT
    for step in ("step1", "step2"):
        values["pretrain"][step] |= SHORT
    values["train_reward"] |= SHORT | {"members": 1}
    values["align"] |= {"epochs": 1}
    # whether eight steps of training make a better restorer is not what is tested here
    rule = {"metric": "psnr", "against": "base", "role": "not_worse", "margin": 50.0}
    values["gate"] |= {"rules": [rule], "limits": [], "bands": {"kinds": [], "margins": {}, "min_faces": 10}}
    values["publish"] |= {"registry": mlflow_server, "store": RELEASES, "model": MODEL}
    values["fetch_champion"] |= {"registry": mlflow_server, "model": MODEL}
    text = yaml.safe_dump(values, sort_keys=False)
    for name in ("params.yaml", "presets/smoke.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
    active = configfile.load(folder / "params.yaml")
    for name in EARLIER:
        _run_stage(active, name, folder / "artifacts")
    return folder


def _run_stage(active: Config, name: str, artifacts: Path) -> None:
    row = STAGES[name]
    execute(row, getattr(active, name), {port: artifacts / port for port in (*row.inputs, *row.outputs)})


@pytest.fixture(scope="module")
def judgements(project: Path) -> list[Judgement]:
    """What a person could say about the candidates, one judgement a pair."""
    drawn = load_candidates(project / "artifacts" / "candidates")
    rows = list(zip(drawn.groups, drawn.digests, drawn.models, drawn.seeds, strict=True))
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :] if a[0] == b[0] and a[1] != b[1]]
    return [_judgement(a, b, "ab"[number % 2], number) for number, (a, b) in enumerate(pairs)]


def _judgement(a: tuple[Any, ...], b: tuple[Any, ...], choice: str, number: int) -> Judgement:
    digest = "0" * 64
    return Judgement(
        pair_id=pair_id(digest, a[1], b[1]),
        lq_id=a[0],
        lq_digest=digest,
        digest_a=a[1],
        digest_b=b[1],
        model_a=a[2],
        model_b=b[2],
        seed_a=a[3],
        seed_b=b[3],
        choice=choice,
        annotator="ann",
        repeat=0,
        source="human",
        instruction="which is better?",
        time=f"2026-01-02T03:04:{number % 60:02d}Z",
        tool_version="0.1.0",
    )


@pytest.fixture(scope="module")
def loop(  # noqa: PLR0913  what it stands on
    repository: Path,
    project: Path,
    judgements: list[Judgement],
    postgresql: str,
    s3_environment: dict[str, str],
    program: Program,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Loop]:
    """The four services with the DAGs, and a first champion in the registry."""
    venv = repository / ".venv-airflow"
    if not (venv / "bin" / "airflow").is_file():
        pytest.skip(f"no Airflow at {venv}: make setup")
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_environment, "PREFRESTORE_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        storage.forget_client()
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        active = configfile.load(project / "params.yaml")
        execute(STAGES["publish"], active.publish, candidate(project, 1, passed=True))
        done = program("model", "promote", "1", "--why", "the first", cwd=project)
        assert done.returncode == 0, done.stderr
        kubeflow = FakeKubeflow(project, tmp_path_factory.mktemp("kubeflow"))
        server = serve(kubeflow)
        kubeflow.upload({"name": "realign"}, (repository / "pipelines" / "compiled" / "realign.yaml").read_bytes())
        proxy, webhook = FaultyProxy(f"http://127.0.0.1:{server.server_port}", TOKEN), Webhook()
        airflow = _airflow(repository, home, project, postgresql, proxy.url, webhook.url)
        try:
            yield Loop(airflow, kubeflow, proxy, webhook, project, judgements, s3)
        finally:
            airflow.stop()
            kubeflow.close()
            for running in (server, proxy, webhook):
                running.shutdown() if running is server else running.close()
            storage.forget_client()


def _airflow(repository: Path, home: Path, project: Path, postgresql: str, kubeflow: str, webhook: str) -> Airflow:  # noqa: PLR0913
    port = free_port()
    database = [POSTGRESQL / "psql", f"postgresql://{postgresql}/postgres", "-qc", "create database airflow"]
    subprocess.run(database, check=True)
    (home / "passwords.json").write_text(json.dumps({USER: PASSWORD}))
    loop = {
        "STORE": STORE,
        "MINIMUM": str(MINIMUM),
        "POLL_SECONDS": "1",
        "RUN_POLL_SECONDS": "2",
        "ARTIFACTS": str(project / "artifacts"),
        "PRESET": "smoke",
        "PIPELINE_VERSION": "realign",
        "COOLDOWN_HOURS": "0.001",
        "DEADLINE_HOURS": DEADLINE,
    }
    program = connection(conn_type="generic", extra={"program": _program(), "folder": str(project)})
    environment = airflow_environment(
        repository / ".venv-airflow",
        repository / "dags",
        home,
        DATABASE__SQL_ALCHEMY_CONN=f"postgresql+psycopg2://{postgresql}/airflow",
        CORE__EXECUTOR="LocalExecutor",
        CORE__PARALLELISM="2",
        CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{port}/execution/",
        CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USER}:admin",
        CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(home / "passwords.json"),
        API__BASE_URL=f"http://127.0.0.1:{port}",
        API__SECRET_KEY="of-the-tests",
        API_AUTH__JWT_SECRET="a-secret-of-the-tests-that-is-long-enough-for-sha-512-signatures-of-tokens",
        **QUICK,
    )
    environment |= {f"PREFRESTORE_LOOP_{name}": value for name, value in loop.items()}
    environment |= {
        "AIRFLOW_CONN_KUBEFLOW_DEFAULT": connection(conn_type="kubeflow", host=kubeflow, password=TOKEN),
        "AIRFLOW_CONN_PREFRESTORE": program,
        "AIRFLOW_CONN_PREFRESTORE_WEBHOOK": connection(conn_type="http", password=webhook),
    }
    airflow = Airflow(home, environment, port)
    airflow.run("db", "migrate")
    airflow.start()
    return airflow


def _program() -> str:
    return str(Path(sys.executable).with_name("prefrestore"))


def test_the_loop_runs_by_itself_and_a_person_decides(loop: Loop) -> None:
    _services_come_up(loop)
    _too_few_start_nothing(loop)
    _twice_and_damaged_start_nothing(loop)
    _enough_start_one_run_though_everything_fails(loop)
    _killed_services_start_no_second_run(loop)
    _a_challenger_waits_with_its_verdict(loop)
    _approval_moves_the_champion(loop)
    _a_champion_that_drifts_is_told(loop)
    _promotion_starts_nothing(loop)
    _rollback(loop)
    _rejection_is_recorded_and_changes_nothing(loop)


def _services_come_up(loop: Loop) -> None:
    airflow = loop.airflow
    eventually(lambda: airflow.client.get("/api/v2/monitor/health").status_code == httpx.codes.OK, 180, "API server")
    airflow.log_in()
    for dag in ("realign_on_preferences", "promote", "champion_drift"):
        eventually(lambda dag=dag: airflow.client.get(f"/api/v2/dags/{dag}").status_code == httpx.codes.OK, 120, dag)
        airflow.send("PATCH", f"dags/{dag}", {"is_paused": False})


def _counted(loop: Loop, text: str) -> None:
    eventually(lambda: text in loop.airflow.log("triggerer"), 120, text)


def _too_few_start_nothing(loop: Loop) -> None:
    append(STORE, loop.judgements[: MINIMUM - 2])
    _counted(loop, f"{MINIMUM - 2} valid of {MINIMUM - 2} judgements")


def _twice_and_damaged_start_nothing(loop: Loop) -> None:
    """The same judgements come again in other shards, and a shard is damaged on the way."""
    for judgement in loop.judgements[: MINIMUM - 2]:
        append(STORE, [judgement])
    loop.s3.put_object(Bucket=BUCKET, Key="team/preferences/dt=2026-01-02/part-damaged.parquet", Body=b"damaged")
    _counted(loop, f"{MINIMUM - 2} valid of {2 * (MINIMUM - 2)} judgements")
    assert loop.airflow.runs("realign_on_preferences") == []
    assert loop.kubeflow.tables["runs"] == {}


def _enough_start_one_run_though_everything_fails(loop: Loop) -> None:
    """The interface fails while the run is submitted: twice 500, then the answer to the submission is lost."""
    loop.proxy.only = "POST /apis/v2beta1/runs"
    loop.proxy.faults.extend(["500", "500", "cut"])
    append(STORE, loop.judgements[MINIMUM - 2 : MINIMUM])
    eventually(lambda: loop.airflow.runs("realign_on_preferences"), 120, "DAG run")
    eventually(lambda: loop.kubeflow.tables["runs"], 120, "run in Kubeflow")
    eventually(lambda: _state(loop, "realign") == "deferred", 120, "deferral")
    assert loop.proxy.used == {"500": 2, "cut": 1}
    told = [line for line in loop.webhook.lines if "part-damaged.parquet" in line]
    assert told, loop.webhook.lines
    assert "the rest is used" in told[0]


def _state(loop: Loop, task: str, dag: str = "realign_on_preferences") -> str | None:
    runs = loop.airflow.runs(dag)
    return loop.airflow.tasks(dag, runs[-1]["dag_run_id"]).get(task) if runs else None


def _killed_services_start_no_second_run(loop: Loop) -> None:
    """Everything that waits for the run dies; while it starts again the interface is down for a while."""
    loop.proxy.only = "GET /apis/v2beta1/runs/"
    loop.airflow.kill("scheduler", "triggerer")
    loop.proxy.faults.extend(["500", "cut", "500"])
    loop.airflow.start("scheduler", "triggerer")
    eventually(lambda: _state(loop, "realign") == "success", 300, "the run's end")
    assert loop.proxy.used == {"500": 4, "cut": 2}
    (run,) = loop.kubeflow.tables["runs"].values()
    parameters = run["runtime_config"]["parameters"]
    assert (parameters["votes"], parameters["preset"]) == (STORE, "smoke")
    assert parameters["data_version"]
    assert f"realign_on_preferences: a run has taken more than {DEADLINE} hours" in loop.webhook.lines


def _a_challenger_waits_with_its_verdict(loop: Loop) -> None:
    eventually(lambda: _state(loop, "challenger") == "success", 60, "challenger")
    eventually(lambda: _state(loop, "approval", "promote") == "awaiting_input", 120, "approval")
    run = loop.airflow.runs("promote")[-1]["dag_run_id"]
    page = loop.airflow.get(f"dags/promote/dagRuns/{run}/taskInstances/approval/-1/hitlDetails")
    assert page["subject"] == f"Promote {MODEL} version 2?"
    assert "Passed" in page["body"]
    assert "report/report.html" in page["body"]
    assert "Champion now: version 1" in page["body"]
    version = _versions(loop)[2]
    assert "challenger" in version["aliases"]
    assert version["tags"]["gate.passed"] == "true"
    assert any("waits for a decision" in line for line in loop.webhook.lines)


def _versions(loop: Loop) -> dict[int, dict[str, Any]]:
    command = [_program(), "model", "list", "--json"]
    done = subprocess.run(command, cwd=loop.folder, env=os.environ, capture_output=True, text=True, check=True)
    return {row["number"]: row for row in json.loads(done.stdout)["versions"]}


def _aliases(loop: Loop) -> dict[str, int]:
    return {alias: number for number, row in _versions(loop).items() for alias in row["aliases"]}


def _decide(loop: Loop, run: str, option: str, why: str) -> None:
    """Answer as a person would, not within the moment in which the scheduler has not yet heard that the task waits."""
    key = f"TaskInstanceKey(dag_id='promote', task_id='approval', run_id='{run}'"
    heard = f"executor event with state success for task instance {key}"
    eventually(lambda: heard in loop.airflow.log("scheduler"), 60, "the scheduler")
    answer = {"chosen_options": [option], "params_input": {"why": why}}
    loop.airflow.send("PATCH", f"dags/promote/dagRuns/{run}/taskInstances/approval/-1/hitlDetails", answer)


def _log(loop: Loop) -> str:
    done = subprocess.run([_program(), "model", "log"], cwd=loop.folder, capture_output=True, text=True, check=True)
    return done.stdout


def _approval_moves_the_champion(loop: Loop) -> None:
    _decide(loop, loop.airflow.runs("promote")[-1]["dag_run_id"], "Promote", "looks better")
    eventually(lambda: _state(loop, "promote", "promote") == "success", 120, "promotion")
    assert _aliases(loop) == {"champion": 2, "previous": 1}
    assert f"{USER}  promote 2: looks better" in _log(loop)
    events = loop.airflow.get("assets/events?order_by=timestamp")["asset_events"]
    named = [(event["name"], event["extra"].get("version")) for event in events]
    assert named == [("prefrestore_preferences", None), ("prefrestore_challenger", 2), ("prefrestore_champion", 2)]
    assert events[0]["extra"]["payload"]["new"] == MINIMUM


def _a_champion_that_drifts_is_told(loop: Loop) -> None:
    """Fresh pictures that are no faces: what was just released is really measured on them, and surely worse."""
    rng, size = np.random.default_rng(0), configfile.load(loop.folder / "params.yaml").ingest.image_size
    for name in [f"{folder}/{number}.png" for folder in ("lq", "hq") for number in range(6)]:
        path = loop.folder / "fresh" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)))
    run = _triggered(loop, "champion_drift", data=str(loop.folder / "fresh"))
    eventually(lambda: loop.airflow.tasks("champion_drift", run).get("judge") == "success", 180, "drift")
    (told,) = [line for line in loop.webhook.lines if "drifts on fresh data" in line]
    assert told.startswith(f"{MODEL} version 2 drifts on fresh data: ")
    assert "psnr " in told


def _triggered(loop: Loop, dag: str, **conf: Any) -> str:
    body = {"logical_date": None, "conf": conf}
    return str(loop.airflow.send("POST", f"dags/{dag}/dagRuns", body)["dag_run_id"])


def _promotion_starts_nothing(loop: Loop) -> None:
    assert len(loop.airflow.runs("realign_on_preferences")) == 1
    assert len(loop.airflow.runs("promote")) == 1
    assert len(loop.kubeflow.tables["runs"]) == 1


def _rollback(loop: Loop) -> None:
    run = _triggered(loop, "promote", action="rollback", why="it was not", who="rita")
    eventually(lambda: loop.airflow.tasks("promote", run).get("rollback") == "success", 120, "rollback")
    assert _aliases(loop) == {"champion": 1, "previous": 2}
    assert loop.airflow.tasks("promote", run)["approval"] == "skipped"


def _rejection_is_recorded_and_changes_nothing(loop: Loop) -> None:
    run = _triggered(loop, "promote", version=2)
    eventually(lambda: loop.airflow.tasks("promote", run).get("approval") == "awaiting_input", 120, "approval")
    _decide(loop, run, "Reject", "too smooth")
    eventually(lambda: loop.airflow.tasks("promote", run).get("reject") == "success", 120, "rejection")
    assert loop.airflow.tasks("promote", run)["promote"] == "skipped"
    assert f"{USER}  reject 2: too smooth" in _log(loop)
    assert _aliases(loop) == {"champion": 1, "previous": 2}
