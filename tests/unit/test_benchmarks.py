"""Benchmarks end on a user's mistake with one line and code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("failing", ["bytes", "text", "silent"])
def test_what_a_program_said_last_is_told(repository: Path, failing: str) -> None:
    said = "" if failing == "silent" else "sys.stderr.write('first\\nlast'); "
    child = f"subprocess.run([sys.executable, '-c', {'import sys; ' + said + 'sys.exit(3)'!r}], check=True, "
    child += f"capture_output=True, text={failing == 'text'})"
    script = f"import subprocess, sys, plainly; plainly.run(lambda: {child})"
    done = subprocess.run([sys.executable, "-c", script], cwd=repository / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("exit status 3.\n" if failing == "silent" else ": last\n")


def test_a_folder_without_a_graph_is_refused(repository: Path, tmp_path: Path) -> None:
    script = repository / "benchmarks" / "orchestration.py"
    done = subprocess.run([sys.executable, script, "--project", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"orchestration: {tmp_path}/artifacts: holds no finished graph: run `make run` first\n"


@pytest.mark.parametrize("name", ["restore", "pretrain"])
def test_both_schedules_give_the_same(repository: Path, tmp_path: Path, name: str) -> None:
    script = repository / "benchmarks" / f"{name}.py"
    command = [sys.executable, script, "--quick", "--repeats", "1", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "NOT EQUAL" not in done.stdout
    assert json.loads((tmp_path / "found.json").read_text())["rows"]
