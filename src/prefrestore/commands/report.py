"""``prefrestore report``: the last evaluation in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.stage import ARTIFACTS, STAGES, run_record

COLUMNS = ("lq", "bicubic", "baseline", "base", "policy", "champion", "codec")
FIRST = ("psnr", "ssim", "identity_similarity", "landmark_distance", "reward_total", "sharpness", "sample_spread")
ARROWS = {"higher": "up", "lower": "down"}
PAGE = Path("report.html")


@click.command()
def command() -> None:
    """Print metrics, verdict and release; write report.html: the report with the verdict and what the run cost."""
    metrics, report = Path(ARTIFACTS["metrics"].path), Path(ARTIFACTS["report"].path, "report.html")
    columns = _read(metrics / "metrics.json")["columns"]
    table = _read(metrics / "metric_table.json")
    verdict = _read(Path(ARTIFACTS["verdict"].path, "verdict.json"))
    release = _read(Path(ARTIFACTS["release"].path, "release.json"))
    for line in aligned(list(rows(columns, table))):
        click.echo(line)
    click.echo(f"\nverdict: {verdict['sentence']}")
    published = f"{release['model']}, {release['digest']:.12}" if release["published"] else "none"
    _write_page(report, verdict)
    click.echo(f"release: {published}\nreport:  {PAGE.resolve()}")


def _write_page(report: Path, verdict: Mapping[str, Any]) -> None:
    from prefrestore.evaluation.page import complete, read_costs

    if not report.is_file():
        raise UserError(f"{report} is missing: make it with dvc repro (or make run)")
    records = [run_record(Path(ARTIFACTS[row.outputs[0]].path)) for row in STAGES.values()]
    PAGE.write_text(complete(report.read_text(encoding="utf-8"), read_costs(records), verdict), encoding="utf-8")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing: make it with dvc repro (or make run)")
    return artifacts.read_json(path)


def rows(columns: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the table's cells, header first: a row per metric, the mean of each column's evaluation faces.

    Args:
        columns: estimates by column and metric.
        table: label, unit, direction and digits of each metric, and the columns' labels.
    """
    names = _ordered(columns, COLUMNS)
    yield ["mean over evaluation faces", "better", *(table["columns"].get(name, name) for name in names)]
    for key in _ordered(table["metrics"], FIRST):
        metric = table["metrics"][key]
        label = f"{metric['label']} [{metric['unit']}]" if metric["unit"] else metric["label"]
        cells = [_cell(columns[name].get(key), metric["digits"]) for name in names]
        if any(cells):
            yield [label, ARROWS[metric["direction"]], *cells]


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: first.index(name) if name in first else len(first))


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return ""
    if estimate["mean"] is None:
        return "nan"
    missing = f" ({estimate['nan']} nan)" if estimate["nan"] else ""
    return f"{estimate['mean']:.{digits}f}{missing}"


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines with columns padded to equal width, the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for first, *rest in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
