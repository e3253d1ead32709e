"""What all tests share: the repository's root, the program, servers of their own, and "a skip is a failure" for CI."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from support.net import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
REAL_FACES = ROOT.parent / "shared" / "data" / "faces"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"
# Read by moto when it is imported: parts of uploads may be small, so that tests need no large files.
os.environ["S3_UPLOAD_PART_MIN_SIZE"] = "1"
POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 180.0
COUNTS = "counts"

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project; tests read it and write elsewhere."""
    return ROOT


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """The folder of real portraits with ``train/`` and ``val/``; it is no part of the project."""
    if not REAL_FACES.is_dir():
        pytest.skip(f"no real portraits at {REAL_FACES}")
    return REAL_FACES


@pytest.fixture(scope="session")
def graph(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the whole graph has run; tests that use it stand in the group ``graph``."""
    from prefrestore.stage import STAGES
    from support import graph as graphs

    folder = graphs.copy(repository, tmp_path_factory.mktemp("graph") / "project")
    assert graphs.stages_run(graphs.run(folder, "dvc", "repro")) == list(STAGES)
    return folder


@pytest.fixture
def finished(graph: Path, tmp_path: Path) -> Path:
    """A copy of the finished graph that a test may change."""
    return Path(shutil.copytree(graph, tmp_path / "project", symlinks=True))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line of counts that is printed when all tests have ended."""
    return lambda line: request.node.user_properties.append((COUNTS, line))


@pytest.fixture(scope="session")
def program() -> Program:
    """Run ``prefrestore ARGUMENTS`` in a process of its own, in the folder ``cwd``."""

    def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefrestore", *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install the package chromium")
    with sync_playwright() as playwright:
        # its sandbox does not start for root, as which CI runs
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a model registry without models: making its tables takes seconds, so once."""
    from prefrestore.runtime.mlflow_access import connect

    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 in memory (moto), whose conditional writes are atomic as S3's are."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def atomic(environ, start_response):
        if "HTTP_IF_NONE_MATCH" not in environ:
            return moto(environ, start_response)
        with one_at_a_time:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, atomic, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def s3_environment(s3_server: str) -> dict[str, str]:
    """The environment variables with which a process finds ``s3_server``."""
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """``USER@127.0.0.1:PORT`` of a PostgreSQL of our own, without a password; make the databases you need."""
    if not (POSTGRESQL / "initdb").is_file():
        pytest.skip(f"no PostgreSQL at {POSTGRESQL}")
    # PostgreSQL does not run as root, and pytest's folders are closed to others.
    owner = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="prefrestore-postgresql-"))
    if owner:
        shutil.chown(folder, **owner)
    options = {"cwd": folder, "stdout": subprocess.DEVNULL, **owner}
    port = free_port()
    create = [
        POSTGRESQL / "initdb",
        "--pgdata=data",
        "--username=tester",
        "--auth=trust",
        "--encoding=UTF8",
        "--no-sync",
    ]
    subprocess.run(create, check=True, **options)
    serve = [POSTGRESQL / "postgres", "-D", "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(serve, stderr=log, **options)
    try:
        ready = [POSTGRESQL / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, server)
        yield f"tester@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mlflow_server(postgresql: str, s3_environment: dict[str, str]) -> Iterator[str]:
    """The address of an MLflow server as teams run it: versions in PostgreSQL, files in S3."""
    import boto3

    keys = {f"aws_{name}": s3_environment[f"AWS_{name.upper()}"] for name in ("access_key_id", "secret_access_key")}
    boto3.client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket="mlflow")
    subprocess.run(
        [POSTGRESQL / "psql", f"postgresql://{postgresql}/postgres", "-qc", "create database mlflow"], check=True
    )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"postgresql+psycopg2://{postgresql}/mlflow",
        "--artifacts-destination",
        "s3://mlflow/files",
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.NamedTemporaryFile("w+", prefix="prefrestore-mlflow-") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **s3_environment, **quiet},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), server)
            yield f"http://127.0.0.1:{port}"
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {Path(log.name).read_text()[-2000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def answers(url: str) -> bool:
    """Say whether a server answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a server is ready.

    Raises:
        RuntimeError: it ended, or takes too long.
    """
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args} did not start (exit code {process.poll()})")
        time.sleep(0.2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``PREFRESTORE_NO_SKIP`` a skip fails, unless it waits for real portraits or a GPU."""
    report = yield
    excused = item.get_closest_marker("gpu") or (item.get_closest_marker("real_faces") and not REAL_FACES.is_dir())
    expected = hasattr(report, "wasxfail")
    if report.skipped and os.environ.get("PREFRESTORE_NO_SKIP") and not excused and not expected:
        report.outcome = "failed"
        report.longrepr = f"skipped where every test must run: {report.longrepr}"
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """With ``PREFRESTORE_NO_SKIP`` a module that skips itself fails as well."""
    if report.skipped and os.environ.get("PREFRESTORE_NO_SKIP"):
        raise pytest.UsageError(f"{report.nodeid} skips itself where every test must run: {report.longrepr}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests counted; lines travel with reports, so also from workers of pytest-xdist."""
    reports = [row for rows in terminalreporter.stats.values() for row in rows if isinstance(row, pytest.TestReport)]
    lines = [
        line for report in reports if report.when == "call" for name, line in report.user_properties if name == COUNTS
    ]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


# Machines that run tests are slow now and then; a slow example is no failure.
settings.register_profile("prefrestore", deadline=None)
settings.load_profile("prefrestore")
