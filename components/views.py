"""What the UI shows of an artifact: numbers of the Metrics, and single-file HTML pages of the reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from components.contract import scalars
from prefrestore import artifacts

PAGE_SUFFIX = "_page"
PAGES: Mapping[str, str] = {"data_report": "data_report.html", "report": "report.html"}
"""The page in the folder of each HTML artifact. The UI can show a file but no folder, so it is an output of its own."""


def _policy(folder: Path) -> dict[str, float]:
    """Return the means of the aligned model and of its base by ``column.metric``."""
    columns = artifacts.read_json(folder / "metrics.json")["columns"]
    found = {
        f"{column}.{metric}": estimate["mean"]
        for column in ("policy", "base")
        for metric, estimate in columns.get(column, {}).items()
    }
    return scalars(found)


def _verdict(folder: Path) -> dict[str, float]:
    return scalars({"passed": artifacts.read_json(folder / "verdict.json")["passed"]})


METRICS: Mapping[str, Callable[[Path], dict[str, float]]] = {"metrics": _policy, "verdict": _verdict}
