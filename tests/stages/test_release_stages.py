"""Stages publish and fetch_champion against a real embedded MLflow."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from prefrestore import artifacts
from prefrestore.config import FetchChampionConfig, PublishConfig
from prefrestore.errors import UserError
from prefrestore.registry.versions import Registry
from prefrestore.stage import STAGES, execute

INPUTS = STAGES["publish"].inputs


@pytest.fixture
def graph(tmp_path: Path, empty_registry: bytes) -> dict[str, Path]:
    """Paths of publish's ports; the inputs hold the files that the stage reads."""
    (tmp_path / "mlflow.db").write_bytes(empty_registry)
    paths = {name: tmp_path / name for name in (*INPUTS, "release")}
    estimate = {"mean": 21.5, "std": 1.0, "n": 8, "nan": 0, "low": 20.5, "high": None}
    files = {
        "base": ("model.safetensors", "weights"),
        "policy": ("adapter.safetensors", "adapter"),
        "reward": ("reward.safetensors", "reward"),
        "metrics": ("metrics.json", json.dumps({"columns": {"policy": {"psnr": estimate}}})),
        "report": ("report.html", "<p>"),
        "verdict": ("verdict.json", json.dumps({"passed": True, "sentence": "Passed."})),
    }
    for name, (file, text) in files.items():
        paths[name].mkdir()
        (paths[name] / file).write_text(text, encoding="utf-8")
        artifacts.write_manifest(paths[name], artifacts.Manifest(name, "test", {}, {"pairs": "abc"}))
    return paths


def _publish(paths: dict[str, Path]) -> tuple[dict, list]:
    root = paths["release"].parent
    config = PublishConfig(registry=f"sqlite:///{root / 'mlflow.db'}", store=str(root / "releases"), model="restorer")
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
    (graph["policy"] / "adapter.safetensors").write_text("other", encoding="utf-8")
    result, versions = _publish(graph)
    assert [version.number for version in versions] == [1, 2]
    assert versions[1].digest == result["digest"] != versions[0].digest


def test_a_failed_gate_publishes_nothing_and_is_no_error(graph: dict[str, Path]) -> None:
    (graph["verdict"] / "verdict.json").write_text('{"passed": false, "sentence": "Not passed: psnr."}')
    result, versions = _publish(graph)
    assert result == {"published": False, "model": "restorer", "verdict": "Not passed: psnr."}
    assert versions == []
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
    (versions[0].folder / "policy" / "adapter.safetensors").write_text("adaptor", encoding="utf-8")
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
        with pytest.raises(UserError, match="registry"):
            Registry(uri)
