"""Reading and editing configuration files; every mistake in one is a line that names file, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from prefrestore.config import Config, Section
from prefrestore.errors import UserError

S = TypeVar("S", bound=Section)
MAX_VALUES = 100_000
"""More than any configuration holds."""


def parse(model: type[S], data: Any, where: str, *, name: str = "") -> S:
    """Validate plain data against a section, called ``name`` in a message.

    Raises:
        UserError: names the first wrong key, where it stands and what was expected.
    """
    try:
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: holds a value that is no plain text, number, list or mapping ({error})") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (*filter(None, [name]), *first["loc"])) or "(top level)"
        message = "unknown key, remove it or check its spelling"
        if first["type"] != "extra_forbidden":
            message = f"{first['msg'].lower()}, found {first['input']!r:.60}"
            if first["type"] == "missing":
                message = "this key is missing, add it (presets/ has complete files)"
        raise UserError(f"{where}: {key}: {message}") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it is missing or is no YAML mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file: name one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): give a YAML text file") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # its tags raise what Python raises
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: is no valid YAML ({detail:.160}): mend the file") from None
    if _holds_more_than(data, MAX_VALUES):
        raise UserError(f"{path}: its references (&name, *name) stand for too many values: write them out")
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no configuration sections: start from a file in presets/")
    return data


def _holds_more_than(data: Any, limit: int) -> bool:
    """Say whether data, written out, has more values than a limit; references make few lines stand for billions."""
    waiting, count = [data], 0
    while waiting and count <= limit:
        value = waiting.pop()
        count += 1
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return count > limit


def load(path: Path) -> Config:
    """Load a whole configuration file.

    Raises:
        UserError: as :func:`parse` and :func:`read_yaml`.
    """
    return parse(Config, read_yaml(path), str(path))


def load_section(path: Path, name: str, model: type[S]) -> S:
    """Load one stage's section of a configuration file; the other sections are not looked at.

    Raises:
        UserError: as :func:`load`, or the section is missing.
    """
    data = read_yaml(path)
    unknown = sorted(set(data) - {field.alias or key for key, field in Config.model_fields.items()})
    if unknown:
        raise UserError(f"{path}: {unknown[0]}: unknown section, remove it or check its spelling")
    if name not in data:
        raise UserError(f"{path}: section {name} is missing: add it (presets/ has complete files)")
    return parse(model, data[name], str(path), name=name)


def edited(text: str, section: str, values: Mapping[str, Any]) -> str:
    """Return a configuration's text with some values of a section replaced; comments at the line's start are kept."""
    whole: dict[str, Any] = yaml.safe_load(text)
    whole[section] |= values
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return comment + yaml.safe_dump(whole, sort_keys=False, width=120, default_flow_style=None)
