"""``prefrestore config``: look at and choose the active configuration, ``params.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import yaml

from prefrestore import config, configfile, dvcfile
from prefrestore.errors import UserError

FOLDER = click.Path(path_type=Path)
ACTIVE = Path("params.yaml")
PRESETS = Path("presets")


@click.group()
def command() -> None:
    """Look at and choose the configuration."""


@command.command()
@click.argument("file", type=FOLDER, default=ACTIVE)
def check(file: Path) -> None:
    """Check a configuration file."""
    configfile.load(file)
    click.echo(f"{file}: ok")


@command.command()
@click.argument("preset", required=False)
@click.option("--data", type=FOLDER, help="folder of images to learn from, instead of the preset's source")
def use(preset: str | None, data: Path | None) -> None:
    """Make PRESET the active configuration, or change only the data of the active one."""
    if preset is None and data is None:
        raise UserError("config use: name a preset, or a folder with --data")
    source = ACTIVE if preset is None else preset_file(preset)
    configfile.load(source)
    text = source.read_text(encoding="utf-8")
    if data is not None:
        text = _with_folder(text, data)
    if not ACTIVE.is_file() or ACTIVE.read_text(encoding="utf-8") != text:
        ACTIVE.write_text(text, encoding="utf-8")
    dvcfile.write(Path("dvc.yaml"), configfile.load(ACTIVE))
    click.echo(f"{ACTIVE}: {preset or 'as before'}{'' if data is None else f', images of {data}'}")


def preset_file(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        UserError: there is none of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml"))) or "(run this in the project's root)"
        raise UserError(f"there is no preset {name} in {PRESETS}: choose from {known}")
    return path


def _with_folder(text: str, data: Path) -> str:
    """Return a configuration with its ``ingest`` section reading all images of a folder.

    Raises:
        UserError: there is no such folder.
    """
    if not data.is_dir():
        raise UserError(f"--data: {data} is no folder: give a folder of images")
    return configfile.edited(text, "ingest", {"source": "folder", "uri": data.as_posix()})


@command.command()
@click.argument("section", required=False)
@click.option("--config", "file", type=FOLDER, default=ACTIVE, help="configuration file")
def show(section: str | None, file: Path) -> None:
    """Show every value with its meaning, of one SECTION or of all."""
    whole = configfile.load(file)
    sections = {field.alias or name: getattr(whole, name) for name, field in config.Config.model_fields.items()}
    if section is not None and section not in sections:
        raise UserError(f"config show: there is no section {section}: choose from {', '.join(sections)}")
    for name, values in sections.items():
        if section in (None, name):
            click.echo(f"{name}:  # {' '.join((type(values).__doc__ or '').split())}")
            for line in _lines(values, "  "):
                click.echo(line)


def _lines(section: config.Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, config.Section):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
            continue
        plain = section.model_dump(mode="json")[name]
        text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip().removesuffix("\n...")
        meaning = f"  # {field.description}" if field.description else ""
        yield f"{indent}{name}: {text}{meaning}"
