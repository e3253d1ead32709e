"""``prefrestore compare``: two evaluations of the same faces, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefrestore import config, configfile
from prefrestore.commands.report import aligned

if TYPE_CHECKING:
    from prefrestore.evaluation.significance import Comparison

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--config", "file", type=FOLDER, default=Path("params.yaml"), help="margins and confidence")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def command(first: Path, second: Path, file: Path, as_json: bool) -> None:
    """Say where the aligned model of SECOND is better or worse than that of FIRST; both are folders of metrics.json."""
    from prefrestore.evaluation.outside import compare_runs
    from prefrestore.evaluation.summary import plain, resampling_of

    section = configfile.load_section(file, "evaluate", config.EvaluateConfig)
    found = compare_runs(first, second, section.margins, resampling_of(section))
    if as_json:
        click.echo(json.dumps(plain(found), indent=2))
        return
    for line in aligned(list(_rows(found))):
        click.echo(line)


def _rows(found: Sequence[Comparison]) -> Iterator[list[str]]:
    from prefrestore.evaluation.metrics import METRICS

    yield ["metric", "first", "second", "gain", "interval", "outcome", "faces"]
    for row in found:
        digits = METRICS[row.metric].digits
        means = [f"{value:.{digits}f}" for value in (row.against_mean, row.candidate_mean)]
        interval = f"{row.low:+.{digits}f} to {row.high:+.{digits}f}"
        yield [METRICS[row.metric].label, *means, f"{row.gain:+.{digits}f}", interval, row.outcome, str(row.n)]
