"""``python -m airflow_provider_kubeflow.local_job JOB FOLDER COMMAND...``: run it in FOLDER, keep its state in JOB.

It imports no Airflow, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

STATE, STDOUT, STDERR = "state.json", "stdout.log", "stderr.log"
TAIL = 20_000


def main(arguments: Sequence[str]) -> None:
    """Run the command to its end; SIGTERM ends it and all that it started."""
    job, folder, *command = Path(arguments[0]), *arguments[1:]
    write_json(job / STATE, {"state": "RUNNING", "process": os.getpid()})
    canceled: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def cancel(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal handler's signature
        canceled.append(number)
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, cancel)
    processes.append(subprocess.Popen(command, cwd=folder, start_new_session=True))
    for number in tuple(canceled):  # while the command was being started
        cancel(number, None)
    code = processes[0].wait()
    state = "CANCELED" if canceled else "SUCCEEDED" if code == 0 else "FAILED"
    error = "" if state != "FAILED" else _last_line(job / STDERR) or f"exit code {code}"
    write_json(job / STATE, {"state": state, "code": code, "error": error, "result": _result(job / STDOUT)})


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in _tail(path).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _result(path: Path) -> Any:
    """Return the JSON object in the last line of the output, or None."""
    with suppress(ValueError):
        found = json.loads(_last_line(path) or "null")
        return found if isinstance(found, dict) else None
    return None


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        return stream.read().decode("utf-8", "replace")


def write_json(path: Path, values: Mapping[str, Any], *, new: bool = False) -> None:
    """Write a file whole or not at all; ``new``: only if there is none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    if not new:
        temporary.replace(path)
        return
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def read_state(job: Path) -> dict[str, Any]:
    """Return what is known of a job; one whose process has not said anything yet is PENDING."""
    try:
        found: dict[str, Any] = json.loads((job / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"state": "PENDING"}
    return found


def outside_environment() -> dict[str, str]:
    """Return this process's environment without what belongs to its own interpreter or is Airflow's secret."""
    foreign = ("AIRFLOW_", "_AIRFLOW", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign) and name != "VIRTUAL_ENV"}


def alive(process: int) -> bool:
    """Say whether a process is one of these jobs; a zombie, or another program of the same number, is not.

    A process that is just being started has no command line yet, as a zombie has none any more.
    """
    folder = Path(f"/proc/{process}")
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
        state = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    if words == [b""]:
        return state not in "ZX"
    return any(word.endswith(b"local_job") or word.endswith(b"local_job.py") for word in words)


if __name__ == "__main__":
    main(sys.argv[1:])
