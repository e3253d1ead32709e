"""Starting the program is cheap, and import rules hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "pandas", "diffusers", "transformers", "mlflow", "great_expectations", "cv2", "dlib", "PIL")


@pytest.mark.parametrize("arguments", [["--help"], ["stage", "--help"], ["config", "check", "params.yaml"]])
def test_start_up_loads_nothing_heavy(arguments: list[str], repository: Path) -> None:
    probe = (
        "import sys\nfrom prefrestore.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_help_is_quick(repository: Path) -> None:
    """Half a second of processor time; the best of five, since other tests run beside this one."""

    def seconds() -> float:
        before = os.times()
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "prefrestore", "--help"], cwd=repository, capture_output=True, check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return min(used, time.perf_counter() - started)

    assert min(seconds() for _ in range(5)) < 0.5


def test_import_rules_hold(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--cache-dir", tmp_path],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_module_and_script_are_the_same_program(repository: Path) -> None:
    script = Path(sys.executable).with_name("prefrestore")
    outputs = [
        subprocess.run([*command, "--version"], cwd=repository, capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "prefrestore"])
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("prefrestore, version ")
