"""``dvc.yaml`` from the stage table: commands, code each stage really uses, its section, its data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from prefrestore.config import Config
from prefrestore.stage import ARTIFACTS, STAGES, Stage

PACKAGE = Path(__file__).parent
WEIGHTS = PACKAGE / "weights"
"""What ships for users: no stage reads it."""
HEADER = "# Written by `prefrestore pipeline dvc --write` from the stage table (stage.py). Do not edit.\n"
CURVES = (("codec", "loss"), ("baseline", "loss"), ("base", "loss"), ("reward", "loss"))
"""Artifacts whose training curve DVC draws, and which value of it."""
# Declarations, plumbing and progress bars: they cannot change what a stage computes from its inputs and its section.
WITHOUT_EFFECT = frozenset(
    {"", "config", "errors", "stage", "runtime", "runtime.progress", "runtime.provenance", "stages"}
)


def render(config: Config) -> str:
    """Return the text of ``dvc.yaml``; ``config`` adds the outside data that its sections name."""
    stages = {row.name: _entry(row, config) for row in STAGES.values()}
    whole = {"stages": stages, "metrics": [f"{ARTIFACTS['metrics'].path}/metrics.json"], "plots": plots()}
    return HEADER + yaml.safe_dump(whole, sort_keys=False, width=120)


def plots() -> list[dict[str, Any]]:
    """Return what ``dvc plots`` draws: training curves, gains over base, calibration of uncertainty."""
    curves = [
        {f"{name}: {value}": {"x": "step", "y": {f"{ARTIFACTS[name].path}/history.json": value}}}
        for name, value in CURVES
    ]
    folder = ARTIFACTS["metrics"].path
    gains = {f"{folder}/gains.json": {"x": "gain_by_half_interval", "y": "metric", "template": "bar_horizontal"}}
    aligned = {f"{folder}/policy_reward.json": {"x": "step", "y": "reward_total"}}
    reliability = {f"{folder}/reliability.json": {"x": "estimated_error", "y": "true_error"}}
    return [*curves, aligned, gains, reliability]


def write(target: Path, config: Config) -> bool:
    """Bring ``target`` in step and say whether it had to be written."""
    if in_step(target, config):
        return False
    target.write_text(render(config), encoding="utf-8")
    return True


def in_step(target: Path, config: Config) -> bool:
    """Say whether ``target`` is what :func:`render` gives."""
    return target.is_file() and target.read_text(encoding="utf-8") == render(config)


def _entry(row: Stage, config: Config) -> dict[str, Any]:
    ports = [f"--{name} {ARTIFACTS[name].path}" for name in (*row.inputs, *row.outputs)]
    return {
        "desc": row.help,
        "cmd": " ".join([f"prefrestore stage {row.name} --config params.yaml", *ports]),
        "deps": [*sources(row, config), *(ARTIFACTS[name].path for name in row.inputs), *code(row)],
        "params": [row.name],
        "outs": [ARTIFACTS[name].path for name in row.outputs],
    }


def sources(row: Stage, config: Config) -> list[str]:
    """Return the files and folders outside the graph that a stage's section names."""
    section = next(value for value in vars(config).values() if isinstance(value, row.section))
    values = [getattr(section, key) for key in row.sources]
    places = [place for value in values for place in ([value] if isinstance(value, str) else value or ())]
    return [place for place in places if place and Path(place).exists()]


def code(row: Stage) -> list[str]:
    """Return the package's files that a stage reaches by its imports, as paths from the repository's root."""
    files = {"artifacts.py"}
    for module in _reach(f"stages.{row.name}"):
        source = _source(module)
        if not without_effect(module) and source is not None:
            files.add(source.relative_to(PACKAGE).as_posix())
            files.update(data.relative_to(PACKAGE).as_posix() for data in _data_files(source))
    return [f"src/{PACKAGE.name}/{name}" for name in sorted(files)]


def without_effect(module: str) -> bool:
    """Return whether a module cannot change what a stage writes; the values of the configuration are parameters."""
    return module in WITHOUT_EFFECT or module.startswith("config.")


def _reach(start: str) -> set[str]:
    """Return the modules that ``start`` imports, directly or not, itself and their packages included."""
    seen: set[str] = set()
    waiting = {start}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= {*_imports(module), *_parents(module)} - seen
    return seen


def _parents(module: str) -> Iterator[str]:
    while module:
        module = module.rpartition(".")[0]
        yield module


def _source(module: str) -> Path | None:
    """Return a module's file; None for a name that is no module, or a package that only has a docstring."""
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    if path.is_dir():
        path /= "__init__.py"
        return path if path.is_file() and len(_tree(path).body) > 1 else None
    path = path.with_suffix(".py")
    return path if path.is_file() else None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(module: str) -> set[str]:
    """Return what a module names in its imports of this package; names that are no modules do no harm.

    The package itself names what it offers to programs, which no stage goes through.
    """
    source = _source(module) if module else None
    if source is None:
        return set()
    found = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    prefix = f"{PACKAGE.name}."
    inside = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
    return {name for name in inside if _is_module(name)}


def _is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _data_files(source: Path) -> set[Path]:
    """Return the files beside a module that are no code and that it names in a string, or such a file names.

    Templates, their parts, vocabularies.
    """
    beside = [
        path
        for path in source.parent.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not path.is_relative_to(WEIGHTS)
    ]
    strings = {node.value for node in ast.walk(_tree(source)) if isinstance(node, ast.Constant)}
    found: set[Path] = set()
    waiting = {path for path in beside if path.name in strings}
    while waiting:
        text = waiting.pop()
        found.add(text)
        content = text.read_text(encoding="utf-8", errors="ignore")
        waiting |= {path for path in beside if path.name in content} - found
    return found
