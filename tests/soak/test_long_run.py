"""A thousand steps of alignment: memory and file handles stay where they were, old checkpoints go."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from prefrestore.runtime.checkpoint import KEPT_CHECKPOINTS
from prefrestore.stage import ARTIFACTS, STAGES
from support import graph as graphs
from support.killing import Work
from support.soak import scaled

pytestmark = pytest.mark.xdist_group("graph")

EPOCHS = scaled(4, 1000)
"""At smoke an epoch is one step of the optimizer or more."""
MORE_MIB, MORE_HANDLES = 60.0, 4
ENDING_MIB = 200.0
"""What the end takes once: it imports what draws and writes; 103 MiB with the torch that brings CUDA."""


def test_alignment_in_the_long_run(graph: Path, tmp_path: Path, tell: Callable[[str], None]) -> None:
    section = yaml.safe_load((graph / "params.yaml").read_text(encoding="utf-8"))["align"] | {"epochs": EPOCHS}
    inputs = {port: graph / ARTIFACTS[port].path for port in STAGES["align"].inputs}
    work = Work("align", section, inputs, tmp_path / "policy", tmp_path / "c", graphs.environment(graph), graph)
    newest, memory, handles, kept = [], [], [], [0]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(
        work.command, cwd=work.cwd, env=work.whole_environment, stdout=log, stderr=log
    ) as process:  # fmt: skip
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            steps = list(work.checkpoints.glob("align/*/step-*"))
            used = seen.memory_info().rss / 2**20
            if steps and used:  # a process that has just ended has none
                newest.append(max(path.name for path in steps))
                memory.append(used)
                handles.append(seen.num_fds())
                kept.append(len(steps))
            time.sleep(scaled(0.2, 1.0))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    last = max(newest.index(newest[-1]), 1)  # after the last checkpoint it draws and writes, and ends
    memory, ending = memory[:last], memory[last:]
    middle = len(memory) // 2
    tell(
        f"long run: {EPOCHS} epochs of alignment, memory {memory[0]:.0f} MiB at first, {memory[middle]:.0f} in the "
        f"middle, {memory[-1]:.0f} at the end; {handles[0]}, {handles[middle]}, {handles[-1]} handles; at most "
        f"{max(kept)} checkpoints"
    )
    assert max(memory[middle:]) - memory[middle] < MORE_MIB
    assert max(ending, default=0.0) - memory[-1] < ENDING_MIB
    assert max(handles) - handles[0] <= MORE_HANDLES
    assert max(kept) <= KEPT_CHECKPOINTS + 1  # the newest is there before the oldest goes
