"""What all tests share: the repository's root, the program as a subprocess, and "a skip is a failure" for CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
REAL_FACES = ROOT.parent / "shared" / "data" / "faces"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"

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
    from prefrestore.registry.versions import Registry

    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Registry(f"sqlite:///{path}")
    return path.read_bytes()


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


# Machines that run tests are slow now and then; a slow example is no failure.
settings.register_profile("prefrestore", deadline=None)
settings.load_profile("prefrestore")
