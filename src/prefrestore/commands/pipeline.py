"""``prefrestore pipeline``: ``dvc.yaml`` from the stage table, and the commands that other packages bring.

The library knows no orchestrator: commands for Kubeflow are found by entry points of the group
``prefrestore.pipeline``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import click

from prefrestore import configfile, dvcfile
from prefrestore.errors import UserError

GROUP = "prefrestore.pipeline"


class Plugins(click.Group):
    """A group whose commands are its own and those of installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *entry_points(group=GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command, or return None if there is none of that name."""
        for entry in entry_points(group=GROUP, name=cmd_name):
            loaded: click.Command = entry.load()
            return loaded
        return super().get_command(ctx, cmd_name)


@click.group(cls=Plugins)
def command() -> None:
    """Derive orchestrators' files from the stage table; run the graph on Kubeflow or as it would run there."""


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
