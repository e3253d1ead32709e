"""``prefrestore prefs``: look after a store of votes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefrestore import artifacts
from prefrestore.commands.report import aligned
from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.data.expectations import Outcome

FOLDER = click.Path(path_type=Path)
NAMED_ROWS = 5


@click.group()
def command() -> None:
    """Import, count, check and compact the votes of people."""


@command.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def stats(store: str, as_json: bool) -> None:
    """Count the votes of STORE, and say how far annotators agree."""
    from prefrestore.data.vote_checks import vote_statistics
    from prefrestore.data.vote_store import read

    figures = vote_statistics(read(store))
    if as_json:
        click.echo(artifacts.canonical_json(figures), nl=False)
        return
    counted = f"{figures['valid']} valid of {figures['judgements']} judgements"
    click.echo(f"{counted} on {figures['pairs']} pairs in {figures['shards']} shards")
    for name in ("sources", "choices", "agreement"):
        click.echo(f"{name}: " + ", ".join(f"{key} {_number(value)}" for key, value in figures[name].items()))
    header = ["annotator", "votes", "share a", "share tie", "consistency", "problem"]
    cells = [[_number(value) for value in row.values()] for row in figures["annotators"]]
    for line in aligned([header, *cells]):
        click.echo(line)
    for row in figures["set_aside"]:
        click.echo(f"set aside: {row['name']}: {row['reason']}")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@command.command()
@click.argument("store")
@click.option("--candidates", type=FOLDER, help="artifact with the candidates that may be voted on")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def validate(store: str, candidates: Path | None, as_json: bool) -> None:
    """Check STORE with Great Expectations; exit code 2 if anything fails."""
    from prefrestore.data.expectations import run_checks
    from prefrestore.data.vote_checks import vote_checks, vote_tables
    from prefrestore.data.vote_store import read

    known = None if candidates is None else _known(candidates)
    tables = vote_tables(read(store), known, datetime.now(UTC))
    outcomes = run_checks(tables, vote_checks())
    if as_json:
        rows = [{"name": row.name, "success": row.success, "rows": row.rows[:NAMED_ROWS]} for row in outcomes]
        click.echo(json.dumps({"store": store, "checks": rows}))
    else:
        _print(outcomes)
    if failed := [outcome.name for outcome in outcomes if not outcome.success]:
        raise UserError(f"{store}: {len(failed)} checks failed ({'; '.join(failed)}): the rows above are not used")


def _print(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        click.echo(f"{'ok    ' if outcome.success else 'FAILED'} {outcome.name}")
        for row in outcome.rows[:NAMED_ROWS]:
            click.echo(f"         {row}")


def _known(candidates: Path) -> set[tuple[str, str]]:
    import pyarrow.parquet as pq

    from prefrestore.data.preferences import CANDIDATES

    path = candidates / CANDIDATES
    if not path.is_file():
        raise UserError(f"{candidates}: holds no candidates: run sample_candidates first")
    table = pq.read_table(path, columns=["group_id", "sha256"])
    return set(zip(table["group_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


@command.command()
@click.argument("store")
def compact(store: str) -> None:
    """Merge the shards of each day of STORE into one."""
    from prefrestore.data.vote_store import compact, shards

    removed = compact(store)
    click.echo(f"{store}: {removed} shards merged, {len(shards(store))} left")


@command.command("import")
@click.argument("file", type=FOLDER)
@click.option("--store", required=True, help="vote store to add to: a folder, or s3://BUCKET/PREFIX")
@click.option("--annotator", default="import", show_default=True, help="pseudonym to record")
def import_file(file: Path, store: str, annotator: str) -> None:
    """Add the pairs of FILE (JSON lines, CSV or Parquet) to a vote store.

    FILE has a degraded image (lq) and either chosen and rejected, or two images with label_0 and label_1.
    """
    from prefrestore.data.pair_import import import_pairs

    done = import_pairs(file, store, annotator)
    for rejection in done.rejected:
        click.echo(f"set aside: {rejection.name}: {rejection.reason}", err=True)
    click.echo(f"{store}: {done.judgements} judgements imported, {len(done.rejected)} rows set aside")
