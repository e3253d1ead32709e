"""``prefrestore pipeline``: files of the orchestrators, derived from the stage table."""

from __future__ import annotations

from pathlib import Path

import click

from prefrestore import configfile, dvcfile
from prefrestore.errors import UserError


@click.group()
def command() -> None:
    """Derive orchestrators' files from the stage table."""


@command.command()
@click.option("--check/--write", default=True, help="check that the file is in step, or write it")
@click.option("--config", "file", type=click.Path(path_type=Path), default=Path("params.yaml"), help="configuration")
@click.argument("target", type=click.Path(path_type=Path), default=Path("dvc.yaml"))
def dvc(check: bool, file: Path, target: Path) -> None:
    """Check or write dvc.yaml."""
    active = configfile.load(file)
    if check and not dvcfile.in_step(target, active):
        raise UserError(f"{target} is not in step with stage table, code and {file}: prefrestore pipeline dvc --write")
    if not check and dvcfile.write(target, active):
        click.echo(f"{target}: written")
