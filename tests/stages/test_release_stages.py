"""Stages publish and fetch_champion against a real embedded MLflow."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save

from prefrestore import artifacts
from prefrestore.config import FetchChampionConfig, PublishConfig
from prefrestore.errors import UserError
from prefrestore.evaluation.summary import metric_table
from prefrestore.registry.versions import Registry
from prefrestore.stage import STAGES, execute

INPUTS = STAGES["publish"].inputs
STAGE_OF = {port: row.name for row in STAGES.values() for port in row.outputs}
DATA = {"config": {"recipe": "r", "eval_recipe": "e"}, "counts": {"train": 8, "eval": 8}, "licences": {"CC0-1.0": 16}}
VERDICT = {"comparisons": [], "limits": [], "bands": [], "confidence": 0.95}


@pytest.fixture
def graph(tmp_path: Path, empty_registry: bytes) -> dict[str, Path]:
    """Paths of publish's ports; the inputs hold the files that the stage reads."""
    (tmp_path / "mlflow.db").write_bytes(empty_registry)
    paths = {name: tmp_path / name for name in (*INPUTS, "release")}
    estimate = {"mean": 21.5, "std": 1.0, "n": 8, "nan": 0, "low": 20.5, "high": None}
    files = {
        "base/model.safetensors": _weights(1),
        "policy/adapter.safetensors": _weights(2),
        "reward/reward.safetensors": _weights(3),
        "metrics/metrics.json": json.dumps({"columns": {"policy": {"psnr": estimate}}}),
        "metrics/metric_table.json": json.dumps(metric_table()),
        "metrics/data.json": json.dumps(DATA),
        "report/report.html": "<p>",
        "verdict/verdict.json": json.dumps({**VERDICT, "passed": True, "sentence": "Passed."}),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in INPUTS:
        artifacts.write_manifest(paths[name], artifacts.Manifest(name, STAGE_OF[name], {"seed": 1}, {"pairs": "abc"}))
    return paths


def _weights(seed: int) -> bytes:
    return save({"w": np.full(4, seed, np.float32)})


def _publish(paths: dict[str, Path]) -> tuple[dict, list]:
    root = paths["release"].parent
    registry, store = f"sqlite:///{root / 'mlflow.db'}", str(root / "releases")
    config = PublishConfig(registry=registry, store=store, model="restorer", licence="cc0-1.0")
    execute(STAGES["publish"], config, paths)
    result = artifacts.read_json(paths["release"] / "release.json")
    return result, Registry(config.registry).versions("restorer")


def test_a_passed_gate_publishes_once(graph: dict[str, Path]) -> None:
    result, versions = _publish(graph)
    assert result["published"]
    assert [(version.number, version.digest) for version in versions] == [(1, result["digest"])]
    assert versions[0].tags["data.digest"] == "abc"
    before = artifacts.digest(graph["release"])
    assert _publish(graph) == (result, versions)
    assert artifacts.digest(graph["release"]) == before


def test_metrics_reach_the_registry(graph: dict[str, Path]) -> None:
    _publish(graph)
    with sqlite3.connect(graph["release"].parent / "mlflow.db") as database:
        rows = dict(database.execute("select key, value from metrics").fetchall())
    assert rows == {"psnr": 21.5, "psnr_low": 20.5}


def test_other_content_is_another_version(graph: dict[str, Path]) -> None:
    _publish(graph)
    (graph["policy"] / "adapter.safetensors").write_bytes(_weights(9))
    result, versions = _publish(graph)
    assert [version.number for version in versions] == [1, 2]
    assert versions[1].digest == result["digest"] != versions[0].digest


def test_a_failed_gate_publishes_nothing_and_is_no_error(graph: dict[str, Path]) -> None:
    failed = {**VERDICT, "passed": False, "sentence": "Not passed: psnr."}
    (graph["verdict"] / "verdict.json").write_text(json.dumps(failed))
    for _ in range(2):
        result, versions = _publish(graph)
        assert result == {"published": False, "model": "restorer", "verdict": "Not passed: psnr."}
        assert versions == []
    releases = graph["release"].parent / "releases"
    assert [path.name for path in releases.iterdir()] == ["evidence"]
    kept = [path.relative_to(releases) for path in releases.rglob("*") if path.is_file()]
    names = sorted(Path(*path.parts[3:]).as_posix() for path in kept)
    assert {"README.md", "origin.json", "report/report.html", "verdict/verdict.json"} <= set(names)
    assert len({path.parts[1] for path in kept}) == 1  # one run, though it was judged twice


def test_a_version_carries_what_it_must(graph: dict[str, Path]) -> None:
    _, versions = _publish(graph)
    folder = versions[0].store.fetch(versions[0].digest)
    assert {path.name for path in folder.iterdir()} == {*INPUTS, "README.md", "origin.json", "manifest.json"}
    card = ModelCard.load(folder / "README.md").data
    assert (card.license, card.library_name, card.pipeline_tag) == ("cc0-1.0", "prefrestore", "image-to-image")
    assert [(row.metric_type, row.metric_value) for row in card.eval_results] == [("psnr", 21.5)]
    origin = artifacts.read_json(folder / "origin.json")
    assert origin["parents"] == {name: artifacts.digest(graph[name]) for name in ("base", "policy", "reward")}
    assert set(origin["config"]) == {STAGE_OF[name] for name in ("base", "policy", "reward", "metrics", "verdict")}
    tags = versions[0].tags
    assert tags["gate.digest"] == artifacts.digest(graph["verdict"])
    assert (tags["data.digest"], tags["licence"], tags["gate.passed"]) == ("abc", "cc0-1.0", "true")
    assert tags["parent.base"] == artifacts.digest(graph["base"])
    assert {"code.commit", "kfp.run_id", "parent.reward"} <= set(tags)


def test_parts_that_do_not_belong_together_are_refused(graph: dict[str, Path]) -> None:
    artifacts.write_manifest(graph["policy"], artifacts.Manifest("policy", "align", {}, {"base": "another"}))
    with pytest.raises(UserError, match="made from another base"):
        _publish(graph)
    assert not (graph["release"].parent / "releases").exists()


def test_release_holds_nothing_volatile(graph: dict[str, Path]) -> None:
    _publish(graph)
    text = (graph["release"] / "release.json").read_text(encoding="utf-8")
    assert str(graph["release"].parent) not in text
    assert '"version"' not in text


def _champion(graph: dict[str, Path], **pin) -> Path:
    root = graph["release"].parent
    config = FetchChampionConfig(registry=f"sqlite:///{root / 'mlflow.db'}", model="restorer", **pin)
    execute(STAGES["fetch_champion"], config, {"champion": root / "champion"})
    return root / "champion"


def test_without_a_pin_there_is_no_champion_and_no_registry_is_asked(tmp_path: Path) -> None:
    config = FetchChampionConfig(registry="sqlite:////nowhere/at/all.db", model="m", version=None, digest=None)
    execute(STAGES["fetch_champion"], config, {"champion": tmp_path / "champion"})
    assert artifacts.read_json(tmp_path / "champion" / "champion.json") == {"model": None}


def test_the_pinned_release_comes_back_whole(graph: dict[str, Path]) -> None:
    result, _ = _publish(graph)
    champion = _champion(graph, version=1, digest=result["digest"])
    found = artifacts.read_json(champion / "champion.json")
    assert found == {"model": "restorer", "version": 1, "digest": result["digest"]}
    for name in ("base", "policy", "reward"):
        assert artifacts.digest(champion / "release" / name) == artifacts.digest(graph[name])


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        ({"version": 2, "digest": "0"}, "no version 2"),
        ({"version": 1, "digest": "0"}, "is pinned"),
        ({"version": 1, "digest": None}, "digest is null"),
    ],
)
def test_a_wrong_pin_is_refused(pin: dict, words: str, graph: dict[str, Path]) -> None:
    _publish(graph)
    with pytest.raises(UserError, match=words):
        _champion(graph, **pin)
    assert not (graph["release"].parent / "champion").exists()


def test_a_changed_release_is_refused(graph: dict[str, Path]) -> None:
    result, versions = _publish(graph)
    folder = versions[0].store.fetch(versions[0].digest)
    (folder / "policy" / "adapter.safetensors").write_bytes(_weights(9))
    with pytest.raises(UserError, match="changed after release"):
        _champion(graph, version=1, digest=result["digest"])


def test_an_address_where_no_registry_is(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and longer than a header of one hundred bytes" * 3)
    (tmp_path / "file").write_text("")
    for uri in (
        f"sqlite:///{tmp_path / 'text.db'}",
        f"sqlite:///{tmp_path / 'file'}/mlflow.db",
        "nonsense://somewhere",
    ):
        with pytest.raises(UserError, match="no MLflow answers"):
            Registry(uri)
