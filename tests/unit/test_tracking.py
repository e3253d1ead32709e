"""A training's metrics in MLflow (an SQLite file of it): once each, also after a resumption or a fault."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from prefrestore.errors import UserError
from prefrestore.runtime import tracking
from prefrestore.runtime.mlflow_access import without_password
from prefrestore.runtime.tracking import ADDRESS, Tracker, tracker

ROWS = [{"step": epoch, "reward_total": epoch / 4} for epoch in range(1, 6)]


@pytest.fixture
def address(empty_registry: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_registry)
    monkeypatch.setenv(ADDRESS, f"sqlite:///{path}")
    return f"sqlite:///{path}"


def runs(address: str) -> list[Run]:
    client = MlflowClient(tracking_uri=address)
    return client.search_runs([client.get_experiment_by_name("prefrestore-align").experiment_id])


def curve(address: str, run: Run) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=address).get_metric_history(run.info.run_id, "reward_total")
    return sorted((row.step, row.value) for row in history)


WHOLE = [(row["step"], row["reward_total"]) for row in ROWS]


def test_a_resumed_training_goes_on_with_its_run(address: str) -> None:
    first = Tracker("align", "abc")
    first.tell(ROWS[:2])
    first.tell(ROWS[:3])  # killed after this; its last checkpoint was of epoch 2
    second = Tracker("align", "abc")
    second.tell(ROWS[:3])
    second.end(ROWS, {"kept_epoch": 4, "stopped": ""})
    (run,) = runs(address)
    assert curve(address, run) == WHOLE
    assert run.info.status == "FINISHED"
    assert run.data.tags["kept_epoch"] == "4"


def test_another_training_has_its_own_run(address: str) -> None:
    Tracker("align", "abc").tell(ROWS[:1])
    Tracker("align", "def").tell(ROWS)
    assert sorted(len(curve(address, run)) for run in runs(address)) == [1, len(ROWS)]


def test_what_mlflow_did_not_take_is_sent_later(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Tracker("align", "abc")
    told.tell(ROWS[:1])
    with monkeypatch.context() as broken:
        broken.setattr(tracking, "REST_SECONDS", 0.0)
        with sqlite3.connect(address.removeprefix("sqlite:///")) as database:
            database.execute("alter table metrics rename to away")
        told.tell(ROWS[:3])
        with sqlite3.connect(address.removeprefix("sqlite:///")) as database:
            database.execute("alter table away rename to metrics")
    assert "align: MLflow did not take the metrics" in capsys.readouterr().err
    told.tell(ROWS)
    assert curve(address, runs(address)[0]) == WHOLE


def test_a_server_that_does_not_answer_is_left_alone_for_a_while(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Tracker("align", "abc")
    with sqlite3.connect(address.removeprefix("sqlite:///")) as database:
        database.execute("alter table metrics rename to away")
    told.tell(ROWS[:1])
    told.tell(ROWS[:2])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:9", "postgresql+psycopg2://me:secret@127.0.0.1:9/mlflow"])
def test_an_address_where_nobody_answers_is_told_before_training(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, wrong)
    with pytest.raises(UserError, match="no MLflow answers") as told:
        tracker("align", "abc")
    assert "secret" not in str(told.value)


def test_nobody_is_told_where_no_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    assert tracker("align", "abc") is None


def test_passwords_are_left_out() -> None:
    assert without_password("at postgresql://me:pa:ss@host/db, me") == "at postgresql://me:***@host/db, me"
