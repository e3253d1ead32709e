"""What needs Airflow runs in Airflow's own environment: each file of tests/airflow_env in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.airflow_services import airflow_environment

pytestmark = pytest.mark.xdist_group("airflow")

FOLDER = Path(__file__).parents[1] / "airflow_env"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.fixture(scope="module")
def airflow(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Airflow's interpreter, and an environment with a database of its own."""
    venv = repository / ".venv-airflow"
    if not (venv / "bin" / "airflow").is_file():
        pytest.skip(f"no Airflow at {venv}: make setup")
    home = tmp_path_factory.mktemp("airflow")
    environment = airflow_environment(venv, repository / "dags", home)
    done = subprocess.run(["airflow", "db", "migrate"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return venv / "bin" / "python", environment


@pytest.mark.parametrize("name", FILES)
def test_in_airflows_environment(name: str, airflow: tuple[Path, dict[str, str]], repository: Path) -> None:
    python, environment = airflow
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={FOLDER}", FOLDER / name]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]


def test_airflows_environment_has_neither_torch_nor_kfp(repository: Path) -> None:
    locked = {line.partition("==")[0] for line in (repository / "requirements" / "airflow.lock").read_text().split()}
    assert "apache-airflow" in locked
    assert not locked & {"torch", "kfp", "kfp-kubernetes", "mlflow", "dvc", "great-expectations"}
