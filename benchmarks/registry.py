"""How long decisions about a model take, and that of two at once one wins. Prints a table, writes JSON."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.promotion import Desk, promote, rollback
from prefrestore.registry.release import put
from prefrestore.registry.versions import Registry

MODEL = "restorer"
DECISION = Decision("benchmark", "2026-01-01T00:00:00+00:00", "to measure")
MEBIBYTE = 2**20


def desk(root: Path) -> Desk:
    """Return the desk of a model whose registry and releases lie under ``root``."""
    return Desk(Registry(f"sqlite:///{root / 'mlflow.db'}"), Audit(root / "releases", MODEL), MODEL)


def publish(root: Path, count: int, size: int) -> None:
    """Register ``count`` releases of ``size`` MiB of weights each, whose gates passed."""
    registry = desk(root).registry
    for number in range(count):
        parts = {name: root / f"parts-{number}" / name for name in ("policy", "verdict")}
        for folder in parts.values():
            folder.mkdir(parents=True)
        (parts["policy"] / "adapter.safetensors").write_bytes(bytes([number]) * MEBIBYTE * size)
        artifacts.write_json(parts["verdict"] / "verdict.json", {"passed": True})
        digest, folder = put(root / "releases", parts)
        registry.register(MODEL, digest, folder, {"gate.passed": "true"}, {})


def seconds(operation: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--size", type=int, default=16, help="MiB of weights in each release")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        publish(root, 3, options.size)
        mine = desk(root)
        promote(mine, 1, DECISION)
        times: dict[str, list[float]] = {"promote": [], "rollback": []}
        for number in (2, 3) * 5:
            times["promote"].append(seconds(lambda number=number: promote(mine, number, DECISION)))
            times["rollback"].append(seconds(lambda: rollback(mine, DECISION)))
        before = len(mine.audit.entries())
        fair = [race(root) for _ in range(options.races)]
        entries = len(mine.audit.entries()) - before
    result = {
        "weights_mib": options.size,
        **{f"{name}_seconds_median": round(statistics.median(values), 3) for name, values in times.items()},
        **{f"{name}_seconds_worst": round(max(values), 3) for name, values in times.items()},
        "races": len(fair),
        "races_with_one_winner": sum(fair),
        "audit_entries_of_races": entries,
    }
    for name, value in result.items():
        print(f"{name:28} {value}")
    if options.json:
        artifacts.write_json(options.json, result)


if __name__ == "__main__":
    main()
