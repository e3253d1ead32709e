"""``prefrestore stage NAME``: run one row of the stage table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from prefrestore import config, configfile
from prefrestore.errors import UserError
from prefrestore.stage import STAGES, Stage, execute

FOLDER = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Run one stage of the graph."""


def _stage_command(row: Stage) -> click.Command:
    """Derive a command from a row of the stage table: one option per input and output."""

    def callback(config_file: Path | None, section_json: str | None, **paths: Path) -> None:
        execute(row, _section(row, config_file, section_json), paths)

    ports = [
        click.Option([f"--{name}"], type=FOLDER, required=True, help=f"{role} folder")
        for role, names in (("input", row.inputs), ("output", row.outputs))
        for name in names
    ]
    options = [
        click.Option(["--config", "config_file"], type=FOLDER, help="configuration file"),
        click.Option(["--section", "section_json"], help="this stage's section as JSON, instead of --config"),
        *ports,
    ]
    text = f"{row.help[0].upper()}{row.help[1:]}."
    return click.Command(row.name, callback=callback, params=list(options), help=text)


def _section(row: Stage, config_file: Path | None, section_json: str | None) -> config.Section:
    if (config_file is None) == (section_json is None):
        raise UserError(f"{row.name}: give either --config FILE or --section JSON")
    if config_file is not None:
        return configfile.load_section(config_file, row.name, row.section)
    try:
        data: Any = json.loads(section_json or "")
    except (ValueError, RecursionError) as error:
        raise UserError(f"--section: is no valid JSON ({error}): pass one section of the configuration") from None
    return configfile.parse(row.section, data, "--section", name=row.name)


for _row in STAGES.values():
    command.add_command(_stage_command(_row))
