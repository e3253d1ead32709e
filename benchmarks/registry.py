"""How long decisions about a model take, as whole commands and as calls, and that of two at once one wins.

Prints a table, writes JSON. The commands are timed as a user meets them: a new process each, on an embedded registry
and a folder of releases.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.promotion import Desk, promote, rollback
from prefrestore.registry.stores import FolderStore
from prefrestore.registry.versions import Evidence, Registry

ROOT = Path(__file__).parents[1]
MODEL = "restorer"
DECISION = Decision("benchmark", "2026-01-01T00:00:00+00:00", "to measure")
NUMBERS_IN_A_MEBIBYTE = 2**18


def desk(root: Path) -> Desk:
    """Return the desk of a model whose registry and releases lie under ``root``."""
    audit = Audit(FolderStore(root / "releases"), MODEL)
    return Desk(Registry(f"sqlite:///{root / 'mlflow.db'}"), audit, MODEL)


def publish(root: Path, count: int, size: int) -> None:
    """Register ``count`` releases of ``size`` MiB of weights each, whose gates passed, and write ``params.yaml``."""
    registry, store = desk(root).registry, FolderStore(root / "releases")
    for number in range(count):
        parts = {name: root / f"parts-{number}" / name for name in ("policy", "verdict")}
        for folder in parts.values():
            folder.mkdir(parents=True)
        weights = np.full(size * NUMBERS_IN_A_MEBIBYTE, number, np.float32)
        save_file({"weights": weights}, parts["policy"] / "adapter.safetensors")
        artifacts.write_json(parts["verdict"] / "verdict.json", {"passed": True})
        digest, source = store.put(parts)
        registry.register(MODEL, Evidence(digest, {"gate.passed": "true"}, {}), source)
    values = yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    values["publish"] |= {"registry": registry.uri, "store": str(root / "releases"), "model": MODEL}
    (root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def seconds(operation: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


def command(root: Path, *arguments: str) -> tuple[float, float]:
    """Return how long ``python ARGUMENTS`` takes from start to exit, and its processor time, seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, *arguments]
    waited = seconds(lambda: subprocess.run(line, cwd=root, check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return waited, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _try(root: Path, number: int, expected: int, start: float, won: multiprocessing.Queue) -> None:
    mine = desk(root)
    time.sleep(max(0.0, start - time.time()))
    try:
        promote(mine, number, DECISION, expected=expected)
    except UserError:
        won.put(None)
    else:
        won.put(number)


def race(root: Path) -> bool:
    """Promote versions 1 and 2 at once against champion 3; say whether exactly one won and is champion."""
    mine = desk(root)
    if mine.audit.state().champion != 3:
        promote(mine, 3, DECISION)
    context = multiprocessing.get_context("fork")
    won = context.Queue()
    start = time.time() + 0.2
    racers = [context.Process(target=_try, args=(root, number, 3, start, won)) for number in (1, 2)]
    for racer in racers:
        racer.start()
    winners = [winner for winner in (won.get() for _ in racers) if winner is not None]
    for racer in racers:
        racer.join()
    champion = mine.registry.aliased(MODEL, "champion")
    return len(winners) == 1 and champion is not None and champion.number == winners[0] == mine.audit.state().champion


def measure(root: Path, repeats: int) -> dict[str, list[float]]:
    """Time promotions and rollbacks, as commands and as calls."""
    mine = desk(root)
    promote(mine, 1, DECISION)
    times: dict[str, list[float]] = defaultdict(list)

    def note(name: str, *arguments: str) -> None:
        waited, worked = command(root, *arguments)
        times[name].append(waited)
        times[f"{name}_processor"].append(worked)

    for number in (2, 3) * repeats:
        note("promote", "-m", "prefrestore", "model", "promote", str(number), "--why", "to measure")
        note("rollback", "-m", "prefrestore", "model", "rollback", "--why", "to measure")
        times["promote_call"].append(seconds(lambda number=number: promote(desk(root), number, DECISION)))
        times["rollback_call"].append(seconds(lambda: rollback(desk(root), DECISION)))
    note("import_mlflow", "-c", "from mlflow import MlflowClient")
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="times two promotions and rollbacks")
    parser.add_argument("--size", type=int, default=16, help="MiB of weights in each release")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "registry.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        publish(root, 3, options.size)
        times = measure(root, options.repeats)
        mine = desk(root)
        before = len(mine.audit.entries())
        fair = [race(root) for _ in range(options.races)]
        entries = len(desk(root).audit.entries()) - before
    result = {
        "weights_mib": options.size,
        **{f"{name}_seconds_median": round(statistics.median(values), 3) for name, values in times.items()},
        **{f"{name}_seconds_worst": round(max(values), 3) for name, values in times.items()},
        "races": len(fair),
        "races_with_one_winner": sum(fair),
        "audit_entries_of_races": entries,
    }
    for name, value in result.items():
        print(f"{name:30} {value}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, result)


if __name__ == "__main__":
    main()
