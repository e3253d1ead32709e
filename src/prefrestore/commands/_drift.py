"""``prefrestore model drift``: a version on fresh faces against itself at its release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefrestore import artifacts, config, configfile
from prefrestore.commands.report import aligned
from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.evaluation.drift import Shift


def report(evaluation: Path, released: Any, table: Mapping[str, Any], file: Path) -> list[Shift]:
    """Return how the metrics of an evaluation differ from those of a release.

    Raises:
        UserError: the folder holds no evaluation, or a damaged one.
    """
    from prefrestore.evaluation.drift import shifts

    path = evaluation / "metrics.json"
    if not path.is_file():
        raise UserError(f"{evaluation}: holds no metrics.json: make it with prefrestore evaluate --out {evaluation}")
    section = configfile.load_section(file, "evaluate", config.EvaluateConfig)
    directions = {name: row["direction"] for name, row in table["metrics"].items()}
    with artifacts.reading(path):
        now = artifacts.read_json(path)["columns"]["policy"]
        return shifts(released["columns"]["policy"], now, directions, section.margins, section.confidence)


def show(found: list[Shift], name: str, *, as_json: bool) -> None:
    """Print the comparison."""
    if as_json:
        worse = [row.metric for row in found if row.worse]
        click.echo(json.dumps({"version": name, "worse": worse, "metrics": [asdict(row) for row in found]}))
        return
    header = ["metric", "released", "now", "gain", "interval", ""]
    cells = [
        [row.metric, f"{row.released:.4g}", f"{row.now:.4g}", f"{row.gain:+.3g}", f"{row.low:+.3g} to {row.high:+.3g}"]
        for row in found
    ]
    marks = ["worse" if row.worse else "" for row in found]
    for line in aligned([header, *([*row, mark] for row, mark in zip(cells, marks, strict=True))]):
        click.echo(line)
