"""Work in processes: nothing of it outlives the process that asked for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from prefrestore.runtime.pool import ordered_map

ASKER = """
import time
from prefrestore.runtime.pool import ordered_map

if __name__ == "__main__":
    for number in ordered_map(abs, range(10_000), workers=2, batch=1):
        print(number, flush=True)
        time.sleep(60)
"""
END_SECONDS = 20


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_results_come_in_order() -> None:
    numbers = list(range(-40, 40))
    assert list(ordered_map(abs, numbers, workers=2, batch=3)) == list(map(abs, numbers))


def test_workers_end_when_the_asker_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "asker.py"
    script.write_text(ASKER, encoding="utf-8")
    asker = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert asker.stdout is not None
    asker.stdout.readline()
    workers = _children(asker.pid)
    assert len(workers) >= 2
    asker.kill()
    asker.wait()
    deadline = time.monotonic() + END_SECONDS
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [worker for worker in workers if _alive(worker)] == []


def _alive(pid: int) -> bool:
    """A process that nobody has waited for yet still has a number, but is a zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
