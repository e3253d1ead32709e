"""``python3 -m components.step NAME``: run one stage inside its container and tell the launcher what came out."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components import trainjob
from components.contract import Exchange, stage_command
from components.views import METRICS, PAGE_SUFFIX, PAGES
from prefrestore import artifacts, cli, configfile
from prefrestore.errors import UserError
from prefrestore.stage import STAGES, Stage, execute

CHECKPOINTS = Path("/checkpoints")
"""Where the volume for checkpoints is mounted; a retried or preempted step goes on from there."""
LAUNCH = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")
"""Said in full: accelerate guesses what is left out, and without the first starts one process where it sees no GPUs."""
PARALLEL = ("pretrain", "align")
"""Stages that can use more than one process."""


def main(arguments: Sequence[str]) -> None:
    """Run the stage that the arguments name."""
    row = STAGES[arguments[0]]
    options = _parser(row).parse_args(arguments[1:])
    exchange = Exchange.parse(options.executor_input)
    paths = {name: Path(getattr(options, name)) for name in (*row.inputs, *row.outputs)}
    if CHECKPOINTS.is_dir():
        os.environ.setdefault("PREFRESTORE_CHECKPOINTS", str(CHECKPOINTS))
    _run(row, options, paths)
    describe(row, paths, exchange)
    exchange.write()


def _parser(row: Stage) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"components.step {row.name}", allow_abbrev=False)
    for option in ("executor-input", "section", *row.inputs, *row.outputs):
        parser.add_argument(f"--{option}", required=True)
    if row.name in PARALLEL:
        parser.add_argument("--launch", required=True, help="JSON from the preflight step: how to start the processes")
    return parser


def _run(row: Stage, options: argparse.Namespace, paths: Mapping[str, Path]) -> None:
    launch = json.loads(getattr(options, "launch", None) or "{}")
    if launch.get("trainjob"):
        trainjob.run(row, options.section, paths, launch["trainjob"])
    elif int(launch.get("processes", 1)) > 1:
        _accelerate(stage_command(row, options.section, paths), int(launch["processes"]))
    else:
        section = configfile.parse(row.section, _json(options.section), "--section", name=row.name)
        execute(row, section, paths)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--section: is no valid JSON ({error}): pass one section of the configuration") from None


def _accelerate(command: Sequence[str], processes: int) -> None:
    """Run a module under ``accelerate launch`` on this machine."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, f"--num_processes={processes}", "-m"]
    code = subprocess.run([*launcher, *command], check=False).returncode
    if code:
        raise UserError(f"{command[2]}: {processes} processes ended with exit code {code}: the lines above say why")


def describe(row: Stage, paths: Mapping[str, Path], exchange: Exchange) -> None:
    """Give every output its metadata and write the pages that the UI shows."""
    for name in row.outputs:
        folder = paths[name]
        metadata: dict[str, Any] = {"digest": artifacts.digest(folder), "stage": row.name}
        if version := exchange.parameter("data_version"):
            metadata["data_version"] = version
        exchange.metadata[name] = METRICS[name](folder) if name in METRICS else metadata
        page = f"{name}{PAGE_SUFFIX}"
        if exchange.has_output(page):
            target = exchange.output(page)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / PAGES[name], target)


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1:])))
