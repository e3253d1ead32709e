"""``prefrestore degrade``: make bad photographs of good ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.data.operations import Severity

DEFAULT_RECIPE = "pref_restore"
PATH = click.Path(path_type=Path)


def _list(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print the recipes and where they come from."""
    if not wanted:
        return
    from prefrestore.data.recipes import recipes

    for name, recipe in recipes().items():
        click.echo(f"{name}: {recipe.source}")
    context.exit()


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=PATH)
@click.option("--recipe", help=f"how to degrade; see --recipes  [default: {DEFAULT_RECIPE}]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--severity", type=click.Choice(["any", "mild", "moderate", "severe"]), help="third of every range")
@click.option("--force", is_flag=True, help="overwrite what stands in OUT")
@click.option("--sheet", is_flag=True, help="draw what every recipe makes of the image IN at three severities as OUT")
@click.option("--recipes", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="list recipes")
def command(source: Path, target: Path, force: bool, sheet: bool, **how: Any) -> None:
    """Degrade the image IN, or all images of the folder IN, into OUT; beside each stands its record."""
    if sheet:
        _sheet(source, target, force, **how)
    else:
        _degrade(source, target, force, **how)


def _sheet(source: Path, target: Path, force: bool, seed: int, **chosen: str | None) -> None:
    from prefrestore.data.batch import draw_sheet

    if any(chosen.values()):
        raise UserError("--sheet shows every recipe at every severity: leave out --recipe and --severity")
    draw_sheet(source, target, seed, force=force)
    click.echo(f"every recipe at three severities drawn to {target}")


def _degrade(source: Path, target: Path, force: bool, recipe: str | None, seed: int, severity: Severity | None) -> None:
    from prefrestore.data.batch import Treatment, degrade_files, jobs_of
    from prefrestore.data.recipes import recipe_named
    from prefrestore.data.tables import Rejection
    from prefrestore.runtime.progress import track

    how = Treatment(recipe_named(recipe or DEFAULT_RECIPE), seed, severity)
    jobs = jobs_of(source, target, force=force)
    done = list(track(degrade_files(jobs, how), "degrade", total=len(jobs), unit="images"))
    rejected = [row for row in done if isinstance(row, Rejection)]
    for row in rejected:
        click.echo(f"set aside: {row.name}: {row.reason}", err=True)
    if len(rejected) == len(done):
        raise UserError(f"{source}: no image could be read: give JPEG, PNG, WebP, TIFF or BMP files")
    click.echo(f"{len(done) - len(rejected)} written to {target}, {len(rejected)} set aside")
