"""What a stage costs more as a step of the compiled pipeline, run in processes, than as the bare command.

Needs the artifacts of a finished graph (``make run``). Runs ``realign`` on them and, after it, each of its stages once
more by ``prefrestore stage`` with the section and the inputs that the step had. The least of a few turns is taken of
each. Prints a table, writes JSON; the bound is 2 s a stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import plainly

from components.contract import stage_command
from components.preflight import OPTIONS, configuration
from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.stage import STAGES

ROOT = Path(__file__).parents[1]
BOUND = 2.0
LINE = re.compile(r"(\d\d:\d\d:\d\d\.\d{3}) - INFO - (Executing task|Task) '([\w-]+)'( finished)?")


def pipeline(project: Path, root: Path, preset: str) -> tuple[Path, dict[str, float]]:
    """Run ``realign``; return the folder of the run and the seconds of each step."""
    words = ["pipeline", "run", "realign", "--root", str(root), "--no-cache"]
    words += [f"--param=artifacts_uri={project / 'artifacts'}", f"--param=preset={preset}"]
    done = subprocess.run(
        [sys.executable, "-m", "prefrestore", *words], cwd=project, capture_output=True, text=True, check=True
    )
    (folder,) = root.glob("prefrestore-realign-*")
    return folder, seconds(done.stdout + done.stderr)


def seconds(log: str) -> dict[str, float]:
    """Return the time of each step from kfp's lines: from 'executing' to 'finished'."""
    started: dict[str, datetime] = {}
    found: dict[str, float] = {}
    for clock, word, task, finished in LINE.findall(re.sub(r"\x1b\[\d+m", "", log)):
        moment = datetime.strptime(clock, "%H:%M:%S.%f")
        if word == "Executing task":
            started[task] = moment
        elif finished:
            found[task] = (moment - started[task]).total_seconds() % 86_400
    return found


def bare(name: str, run: Path, section: str, project: Path, scratch: Path) -> float:
    """Return the seconds of the command that runs a stage with the inputs of the pipeline's step."""
    made = {port: path for path in run.glob("*/*") for port in [path.name]}
    paths = {port: made[port] for port in STAGES[name].inputs}
    paths |= {port: scratch / port for port in STAGES[name].outputs}
    # A checkpoint root of its own: the step's would be resumed.
    environment = {**os.environ, "PREFRESTORE_CHECKPOINTS": str(scratch / "checkpoints")}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *stage_command(STAGES[name], section, paths)],
        cwd=project,
        env=environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def turn(project: Path, preset: str) -> dict[str, tuple[float, float]]:
    """Return seconds in the pipeline and bare, by stage."""
    chosen = dict.fromkeys(OPTIONS, "") | {"preset": preset, "changes": "{}"}
    sections = configuration(chosen)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="prefrestore-") as folder:
        os.environ["PREFRESTORE_CHECKPOINTS"] = f"{folder}/checkpoints"
        run, steps = pipeline(project, Path(folder) / "runs", preset)
        for task, inside in steps.items():
            name = task.replace("-", "_")
            if name in STAGES:
                section = json.dumps(sections[name], sort_keys=True)
                alone = bare(name, run, section, project, Path(folder) / "bare" / name)
                rows[name] = (inside, alone)
    return rows


def measure(project: Path, preset: str, turns: int) -> dict[str, dict[str, float]]:
    """Return the least seconds of all turns in the pipeline and bare, and their difference, by stage."""
    found = [turn(project, preset) for _ in range(turns)]
    rows = {}
    for name in found[0]:
        inside, alone = (min(one[name][place] for one in found) for place in (0, 1))
        rows[name] = {"step": inside, "bare": alone, "overhead": inside - alone}
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, default=ROOT, help="folder with artifacts/ and presets/")
    parser.add_argument("--preset", default="tiny", help="the preset of that graph")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if not (options.project / "artifacts" / "base").is_dir():
        raise UserError(f"{options.project / 'artifacts'}: holds no finished graph: run `make run` first")
    os.chdir(options.project)
    rows = measure(options.project.resolve(), options.preset, options.turns)
    print(f"{'stage':20} {'step s':>8} {'bare s':>8} {'more s':>8} {'ratio':>6}")
    for name, row in rows.items():
        ratio = row["step"] / row["bare"]
        print(f"{name:20} {row['step']:8.2f} {row['bare']:8.2f} {row['overhead']:8.2f} {ratio:6.2f}")
    worst = max(row["overhead"] for row in rows.values())
    print(f"at most {worst:.2f} s more a stage; the bound is {BOUND:.0f} s")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    artifacts.write_json(results / "orchestration.json", {"stages": rows, "worst_overhead": worst, "bound": BOUND})


if __name__ == "__main__":
    plainly.run(main)
