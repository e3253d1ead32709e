"""The first step of a pipeline catches what would fail later, and hands out sections and the version of the data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import notify, preflight
from components.contract import Exchange
from prefrestore.errors import UserError
from prefrestore.runtime import storage
from prefrestore.stage import STAGES

GOOD = dict.fromkeys(preflight.OPTIONS, "") | {"preset": "smoke", "gpu_pool": "cpu", "gpu_count": "0", "changes": "{}"}


@pytest.fixture
def project(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(repository / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"preset": "huge"}, "preset: there is no preset huge: choose from bench, full, portrait, smoke, tiny"),
        ({"gpu_pool": "moon"}, "gpu_pool: there is no pool moon: choose from cpu, gpu"),
        ({"gpu_count": "two"}, "gpu_count: 'two' is no number: give 0 to 0"),
        ({"gpu_pool": "gpu", "gpu_count": "99"}, "gpu_count: a node of pool gpu has 8, not 99"),
        ({"gpu_pool": "gpu", "gpu_count": "-1"}, "gpu_count: '-1' is no number"),
        ({"spot": "maybe"}, "spot: 'maybe' is neither yes nor no"),
        ({"spot": "yes"}, "spot: pool cpu has no spot nodes"),
        ({"changes": "{"}, "changes: is no valid JSON"),
        ({"changes": '{"align": {"epoch": 1}}'}, "align.epoch: unknown key"),
        ({"changes": '{"allign": {"epochs": 1}}'}, "changes: allign: is no section"),
        ({"trainer": "rocket"}, "trainer: 'rocket' is neither pod nor trainjob"),
        ({"shards": "0"}, "shards: '0' is no number"),
        ({"artifacts_uri": "/nowhere/at/all"}, "artifacts_uri: /nowhere/at/all is no folder"),
        ({"data_uri": "/nowhere/at/all"}, "/nowhere/at/all: no such folder"),
        ({"registry": "http://127.0.0.1:9"}, "http://127.0.0.1:9: no MLflow answers"),
        ({"registry": "postgresql+psycopg2://me@127.0.0.1:9/mlflow"}, "127.0.0.1:9/mlflow: no MLflow answers"),
        ({"release_store": "gs://bucket"}, "gs://bucket: releases lie in a folder or in S3"),
    ],
)
def test_bad_choice_is_one_line(choice: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        preflight.resolve(GOOD | choice)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def dead_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials for an S3 where nobody answers."""
    values = {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage.forget_client()
    yield
    storage.forget_client()


@pytest.mark.usefixtures("project", "dead_s3")
@pytest.mark.parametrize("field", ["data_uri", "artifacts_uri", "votes", "release_store"])
def test_unreachable_s3_is_one_line(field: str) -> None:
    with pytest.raises(UserError, match="S3 cannot be reached") as caught:
        preflight.resolve(GOOD | {field: "s3://bucket/prefix"})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("project")
def test_sections_are_the_preset_with_the_changes() -> None:
    values = preflight.resolve(GOOD | {"changes": '{"align": {"epochs": 7}}', "shards": "3"})
    assert {f"section_{name}" for name in STAGES} <= set(values)
    assert json.loads(values["section_align"])["epochs"] == 7
    assert [json.loads(part)["shard_index"] for part in values["degrade_parts"]] == [0, 1, 2]
    assert json.loads(preflight.resolve(GOOD)["section_align"])["epochs"] == 2


def test_changed_data_under_the_same_path_gives_another_version(project: Path) -> None:
    images = project / "images"
    images.mkdir()
    (images / "one.png").write_bytes(b"one")
    choice = GOOD | {"data_uri": str(images)}
    first = preflight.resolve(choice)["seen_version"]
    assert preflight.resolve(choice)["seen_version"] == first
    assert preflight.resolve(choice | {"data_version": "dvc"})["seen_version"] != first
    (images / "one.png").write_bytes(b"two")
    assert preflight.resolve(choice)["seen_version"] != first


@pytest.mark.usefixtures("project")
def test_a_job_of_several_nodes_asks_for_no_gpu_in_the_steps_own_pod() -> None:
    values = preflight.resolve(GOOD | {"gpu_pool": "gpu", "gpu_count": "4", "trainer": "trainjob", "nodes": "2"})
    assert (values["gpus"], values["gpus_parallel"]) == ("4", "0")
    assert json.loads(values["launch"])["trainjob"]["nodes"] == 2


@pytest.mark.parametrize("value", [3, 3.0, "3"])
def test_numbers_are_read_however_they_are_spelt(value: object) -> None:
    task = {"inputs": {"parameterValues": {"n": value}}, "outputs": {"outputFile": "x"}}
    assert Exchange.parse(json.dumps(task)).parameter("n") == "3"


def test_the_end_of_a_run_is_one_sentence() -> None:
    status = {"state": "FAILED", "pipelineJobResourceName": "run-1", "error": {"message": "align failed"}}
    task = {"inputs": {"parameterValues": {"status": status}}, "outputs": {"outputFile": "x"}}
    told = notify.sentence("realign", Exchange.parse(json.dumps(task)))
    assert told == "prefrestore realign run-1: FAILED (align failed)"
