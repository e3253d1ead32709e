"""What Airflow costs while nothing happens: parse time of each DAG, processor time of each service.

The four services run on SQLite with all DAGs and an empty local vote store, which is watched every ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import free_port  # noqa: E402
from support.airflow_services import SERVICES, Airflow, airflow_environment, connection, eventually  # noqa: E402

VENV, DAGS = ROOT / ".venv-airflow", ROOT / "dags"
TICK = os.sysconf("SC_CLK_TCK")
PROBE = """
import sys, time
import airflow.sdk, airflow.dag_processing.dagbag, airflow.providers.standard.operators.hitl
for name in sys.argv[1:]:
    started = time.process_time()
    __import__(name)
    print(name, time.process_time() - started)
"""


def parse_seconds() -> dict[str, float]:
    """Return the processor seconds of importing each DAG in a process that has loaded Airflow, each in its own."""
    found = {}
    for path in sorted(DAGS.glob("*.py")):
        command = [VENV / "bin" / "python", "-c", PROBE, path.stem]
        environment = {**os.environ, "PYTHONPATH": str(DAGS)}
        done = subprocess.run(command, env=environment, cwd=DAGS, capture_output=True, text=True, check=True)
        found[path.stem] = float(done.stdout.split()[-1])
    return found


def used(session: int) -> float:
    """Return the processor seconds of all living processes of a session, their ended children included."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            total += sum(map(int, fields[11:15])) / TICK
    return total


def service_shares(seconds: float) -> dict[str, float]:
    """Return the share of one core that each service takes while nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), free_port()
        (home / "votes").mkdir()
        environment = airflow_environment(
            VENV,
            DAGS,
            home,
            CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{port}/execution/",
            CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
            CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
            API_AUTH__JWT_SECRET="a-secret-that-is-long-enough-for-a-measurement-on-this-machine-only-0123456789",
        )
        extra = {"program": str(ROOT / ".venv" / "bin" / "prefrestore"), "folder": str(ROOT)}
        environment |= {
            "PREFRESTORE_LOOP_STORE": str(home / "votes"),
            "PREFRESTORE_LOOP_POLL_SECONDS": "10",
            # never, so that nothing starts while it is measured
            "PREFRESTORE_LOOP_RETRAIN_CRON": "0 0 29 2 *",
            "PREFRESTORE_LOOP_DRIFT_CRON": "0 0 29 2 *",
            "AIRFLOW_CONN_PREFRESTORE": connection(conn_type="generic", extra=extra),
        }
        airflow = Airflow(home, environment, port)
        airflow.run("db", "migrate")
        airflow.start()
        try:
            eventually(lambda: "0 valid of 0" in airflow.log("triggerer"), 300, "the watcher's first look")
            time.sleep(10)
            before = {name: used(process.pid) for name, process in airflow.processes.items()}
            time.sleep(seconds)
            after = {name: used(process.pid) for name, process in airflow.processes.items()}
        finally:
            airflow.stop()
    return {name: (after[name] - before[name]) / seconds for name in SERVICES}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the services are watched")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/airflow_idle.json"))
    options = parser.parse_args()
    if not (VENV / "bin" / "airflow").is_file():
        parser.error(f"there is no Airflow at {VENV}: make .venv-airflow/installed")
    parsed, shares = parse_seconds(), service_shares(options.seconds)
    for name, value in parsed.items():
        print(f"{name:<24} {value:6.2f} s processor time to import, beside Airflow itself")
    for name, value in shares.items():
        print(f"{name:<24} {100 * value:6.1f} % of one core, over {options.seconds:.0f} s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"parse_seconds": parsed, "core_share": shares}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
