"""Promotion, rollback and audit through the program, on a real embedded MLflow and a folder of releases."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import save

from prefrestore import artifacts, configfile
from prefrestore.commands import model as commands
from prefrestore.errors import UserError
from prefrestore.registry import promotion
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.stores import FolderStore
from prefrestore.registry.versions import Evidence, Registry

MODEL = "restorer"
DECISION = Decision("tester", "2026-01-01T00:00:00+00:00", "because")


def _release(root: Path, name: str, *, passed: bool) -> dict[str, Path]:
    parts = {part: root / "parts" / name / part for part in ("policy", "metrics", "verdict")}
    estimate = {"mean": float(len(name)), "std": 1.0, "n": 8, "nan": 0, "low": 20.5, "high": None}
    table = {"columns": {}, "metrics": {"psnr": {"label": "PSNR", "unit": "dB", "digits": 2, "direction": "higher"}}}
    files = {
        "policy/adapter.safetensors": save({"w": np.full(4, len(name), np.float32)}),
        "metrics/metrics.json": json.dumps({"columns": {"policy": {"psnr": estimate}}}),
        "metrics/metric_table.json": json.dumps(table),
        "verdict/verdict.json": json.dumps({"passed": passed, "sentence": "."}),
    }
    for file, text in files.items():
        path = root / "parts" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parts


@pytest.fixture
def root(tmp_path: Path, empty_registry: bytes, repository: Path) -> Path:
    """A folder with a configuration, a registry and three versions, of which the third did not pass its gate."""
    (tmp_path / "mlflow.db").write_bytes(empty_registry)
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name, passed in (("a", True), ("bb", True), ("ccc", False)):
        digest, source = FolderStore(tmp_path / "releases").put(_release(tmp_path, name, passed=passed))
        tags = {"gate.passed": str(passed).lower(), "gate.digest": name}
        version = registry.register(MODEL, Evidence(digest, tags, {}), source)
        promotion.challenge(_desk(tmp_path), version)
    values = yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    values["publish"] |= {"registry": registry.uri, "store": str(tmp_path / "releases"), "model": MODEL}
    (tmp_path / "params.yaml").write_text("# comment\n" + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return tmp_path


def _desk(root: Path) -> promotion.Desk:
    audit = Audit(FolderStore(root / "releases"), MODEL)
    return promotion.Desk(Registry(f"sqlite:///{root / 'mlflow.db'}"), audit, MODEL)


def _folder(root: Path, number: int) -> Path:
    version = Registry(f"sqlite:///{root / 'mlflow.db'}").get(MODEL, number)
    return version.store.fetch(version.digest)


def _call(root: Path, *arguments: str) -> str:
    result = CliRunner().invoke(commands.command, [*arguments, "--config", str(root / "params.yaml")])
    if result.exception:
        raise result.exception
    return result.output


def _aliases(root: Path) -> dict[str, int]:
    versions = Registry(f"sqlite:///{root / 'mlflow.db'}").versions(MODEL)
    return {alias: version.number for version in versions for alias in version.aliases}


def test_promote_and_roll_back(root: Path) -> None:
    assert _aliases(root) == {"challenger": 3}
    assert "champion 1, previous none" in _call(root, "promote", "1", "--why", "first")
    assert "champion 2, previous 1" in _call(root, "promote", "2", "--why", "sharper", "--who", "eve")
    assert _aliases(root) == {"champion": 2, "previous": 1, "challenger": 3}
    assert "champion 1, previous 2" in _call(root, "rollback", "--why", "complaints")
    assert _aliases(root) == {"champion": 1, "previous": 2, "challenger": 3}
    lines = _call(root, "log").splitlines()
    assert [re.sub(r"  \S+T\S+  ", " ", line).split(" ", 2)[0] for line in lines] == ["1", "2", "3"]
    assert "eve  promote 2: sharper" in lines[1]
    assert "rollback 1: complaints" in lines[2]


def test_a_version_without_a_passed_gate_needs_force(root: Path) -> None:
    with pytest.raises(UserError, match="did not pass its gate"):
        _call(root, "promote", "3", "--why", "hurry")
    assert not (root / "releases" / "audit").exists()
    assert "champion 3" in _call(root, "promote", "3", "--why", "hurry", "--force")
    assert _aliases(root) == {"champion": 3}
    assert "(forced): hurry" in _call(root, "log")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "9", "--why", "x"], "no version 9 .* choose from 1, 2, 3"),
        (["promote", "1", "--why", " "], "--why: is empty"),
        (["promote", "1", "--why", "x", "--expect", "2"], "champion is version none, not 2"),
        (["rollback", "--why", "x"], "no previous version"),
        (["pin"], "no champion yet"),
        (["show", "9"], "no version 9"),
    ],
)
def test_bad_decisions_change_nothing(arguments: list[str], words: str, root: Path) -> None:
    before = (root / "params.yaml").read_bytes(), _aliases(root)
    with pytest.raises(UserError, match=words):
        _call(root, *arguments)
    assert ((root / "params.yaml").read_bytes(), _aliases(root)) == before
    assert not (root / "releases" / "audit").exists()


def test_a_damaged_release_is_not_promoted(root: Path) -> None:
    folder = _folder(root, 1)
    (folder / "policy" / "adapter.safetensors").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="changed after release"):
        _call(root, "promote", "1", "--why", "x")
    with pytest.raises(UserError, match="changed after release"):
        _call(root, "show", "1")


def test_rejecting_takes_the_challenger_away(root: Path) -> None:
    _call(root, "reject", "3", "--why", "blurred")
    assert _aliases(root) == {}
    _call(root, "promote", "1", "--why", "first")
    with pytest.raises(UserError, match="roll back first"):
        _call(root, "reject", "1", "--why", "x")


def test_pin_writes_what_fetch_champion_reads(root: Path) -> None:
    _call(root, "promote", "2", "--why", "first")
    _call(root, "pin")
    text = (root / "params.yaml").read_text(encoding="utf-8")
    assert text.startswith("# comment\n")
    pinned = configfile.load(root / "params.yaml").fetch_champion
    assert (pinned.model, pinned.version) == (MODEL, 2)
    assert pinned.digest == Registry(pinned.registry).get(MODEL, 2).digest


def test_listing_and_comparing(root: Path) -> None:
    _call(root, "promote", "2", "--why", "first")
    lines = _call(root, "list").splitlines()
    assert lines[0].split() == ["version", "release", "gate", "aliases"]
    assert lines[2].split()[0] == "2"
    assert lines[2].endswith("champion")
    assert "PSNR [dB]" in _call(root, "diff", "1", "2")
    assert "as released" in _call(root, "show", "1")


def _evaluated(root: Path, **psnr: float) -> Path:
    folder = root / "fresh"
    folder.mkdir(exist_ok=True)
    columns = {"policy": {"psnr": {"std": 1.0, "n": 8, **psnr}}}
    (folder / "metrics.json").write_text(json.dumps({"columns": columns}), encoding="utf-8")
    return folder


def test_drift_compares_the_champion_with_its_release(root: Path) -> None:
    """Its release has a mean of 2 over 8 faces with a deviation of 1; smoke's margin for PSNR is 0.2."""
    _call(root, "promote", "2", "--why", "first")
    found = json.loads(_call(root, "drift", str(_evaluated(root, mean=-3.0)), "--json"))
    (row,) = found["metrics"]
    assert (found["version"], found["worse"]) == (f"{MODEL} version 2", ["psnr"])
    assert (row["released"], row["now"], row["gain"], row["margin"]) == (2.0, -3.0, -5.0, 0.2)
    assert row["low"] < -5.0 < row["high"] < -0.2
    header, line = _call(root, "drift", str(_evaluated(root, mean=-3.0))).splitlines()
    assert header.split() == ["metric", "released", "now", "gain", "interval"]
    assert line.split()[:4] + line.split()[-1:] == ["psnr", "2", "-3", "-5", "worse"]
    assert json.loads(_call(root, "drift", str(_evaluated(root, mean=1.9)), "--json"))["worse"] == []
    other = json.loads(_call(root, "drift", str(_evaluated(root, mean=1.9)), "--number", "1", "--json"))
    assert (other["version"], other["metrics"][0]["released"]) == (f"{MODEL} version 1", 1.0)


def test_drift_that_cannot_be_measured_is_one_line(root: Path) -> None:
    with pytest.raises(UserError, match="no champion yet"):
        _call(root, "drift", str(_evaluated(root, mean=1.0)))
    _call(root, "promote", "1", "--why", "first")
    with pytest.raises(UserError, match=r"holds no metrics\.json: make it with prefrestore evaluate"):
        _call(root, "drift", str(root / "nothing"))
    for damaged in ("{", "{}", '{"columns": {"policy": {"psnr": {}}}}'):
        (root / "fresh" / "metrics.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match="is damaged or of another kind"):
            _call(root, "drift", str(root / "fresh"))


def test_aliases_moved_by_hand_are_overruled(root: Path) -> None:
    _call(root, "promote", "1", "--why", "first")
    Registry(f"sqlite:///{root / 'mlflow.db'}").set_alias(MODEL, "champion", 3)
    _call(root, "promote", "2", "--why", "next")
    assert _aliases(root) == {"champion": 2, "previous": 1, "challenger": 3}


def test_a_decision_that_died_before_the_aliases_is_completed_by_the_next(root: Path, monkeypatch) -> None:
    desk = _desk(root)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "settle", lambda _: None)
        promotion.promote(desk, 1, DECISION)
    assert "champion" not in _aliases(root)
    promotion.reject(desk, 3, DECISION)
    assert _aliases(root) == {"champion": 1}


@pytest.mark.parametrize("damage", ["edit", "remove", "text"])
def test_an_altered_log_is_refused(damage: str, root: Path) -> None:
    for number in (1, 2):
        _call(root, "promote", str(number), "--why", "x")
    first = root / "releases" / "audit" / MODEL / "000001.json"
    if damage == "remove":
        first.unlink()
    else:
        text = first.read_text(encoding="utf-8").replace('"x"', '"y"') if damage == "edit" else "{"
        first.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="audit log"):
        _call(root, "rollback", "--why", "x")


def _race(folder: str, number: int, start: float, results: multiprocessing.Queue) -> None:
    root = Path(folder)
    desk = _desk(root)
    time.sleep(max(0.0, start - time.time()))
    try:
        promotion.promote(desk, number, DECISION, expected=3)
    except UserError as error:
        results.put((number, str(error)))
    else:
        results.put((number, None))


def test_of_two_promotions_at_once_one_wins(root: Path) -> None:
    """Ten tries here; ``benchmarks/registry.py`` makes a hundred."""
    desk = _desk(root)
    spawn = multiprocessing.get_context("fork")
    for _ in range(10):
        promotion.promote(desk, 3, DECISION, force=True)
        results = spawn.Queue()
        start = time.time() + 0.3
        racers = [spawn.Process(target=_race, args=(str(root), number, start, results)) for number in (1, 2)]
        for racer in racers:
            racer.start()
        outcomes = dict(results.get(timeout=60) for _ in racers)
        for racer in racers:
            racer.join()
        winners = [number for number, error in outcomes.items() if error is None]
        assert len(winners) == 1, outcomes
        assert "meanwhile" in outcomes[3 - winners[0]]
        assert _aliases(root)["champion"] == desk.audit.state().champion == winners[0]
    entries = desk.audit.entries()
    assert len(entries) == 20
    assert [path.name for path in (root / "releases" / "audit" / MODEL).iterdir() if path.suffix != ".json"] == []


def test_the_log_names_digest_and_verdict(root: Path) -> None:
    _call(root, "promote", "2", "--why", "first")
    entry = artifacts.read_json(root / "releases" / "audit" / MODEL / "000001.json")
    assert entry["digest"] == Registry(f"sqlite:///{root / 'mlflow.db'}").get(MODEL, 2).digest
    assert entry["verdict"] == "bb"


def test_a_full_disk_leaves_nothing_half_done(root: Path, tmp_path: Path) -> None:
    """A limit on the size of files is met as a full disk is: in the middle of a write."""
    parts = _release(tmp_path / "new", "dddd", passed=True)
    (parts["policy"] / "more.safetensors").write_bytes(save({"w": np.zeros(1 << 18, np.float32)}))
    before = sorted((root / "releases").iterdir())
    probe = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))\n"
        "from prefrestore import cli; from prefrestore.commands import model\n"
        "from prefrestore.registry.stores import FolderStore\n"
        "store, parts = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "model.command.add_command(model.click.Command('put', callback=lambda: FolderStore(store).put("
        "{name: parts / name for name in ('policy', 'verdict')})))\n"
        "sys.argv = ['prefrestore', 'model', 'put']\ncli.main()\n"
    )
    arguments = [str(root / "releases"), str(parts["policy"].parent)]
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted((root / "releases").iterdir()) == before
