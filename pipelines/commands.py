"""``prefrestore pipeline compile | run | submit | schedule``; kfp is imported when a command runs, not before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from pipelines.remote import Server
from prefrestore import configfile
from prefrestore.errors import UserError

C = TypeVar("C", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
PACKAGES = Path(__file__).parent / "compiled"
NAMES = ("full", "realign", "evaluate")
LOCK = Path("dvc.lock")


def _chosen(command: C) -> C:
    """Add the options that say what to run with which parameters."""
    options = [
        click.argument("pipeline"),
        click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="parameter of the pipeline"),
        click.option("--config", "config", type=FOLDER, help="configuration file whose values go over the preset's"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _server(command: C) -> C:
    options = [
        click.option("--host", required=True, help="address of Kubeflow Pipelines; token in $KFP_TOKEN"),
        click.option("--namespace", default="kubeflow", show_default=True, help="namespace of the run"),
        click.option("--experiment", default="pref-restore", show_default=True, help="experiment of the run"),
        click.option("--account", help="service account of the pods, such as prefrestore-runner of deploy/"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--output", type=FOLDER, default=PACKAGES, help="folder to write; the golden packages by default")
@click.option("--shm-size", default="8Gi", show_default=True, help="size of /dev/shm in steps on GPUs")
def compile_(output: Path, shm_size: str) -> None:
    """Compile the pipelines to packages for Kubeflow."""
    _needs_kfp()
    from pipelines.compile import PIPELINES, compile_one

    output.mkdir(parents=True, exist_ok=True)
    for name in PIPELINES:
        compile_one(name, output / f"{name}.yaml", shm_size)
        click.echo(output / f"{name}.yaml")


@click.command()
@_chosen
@click.option("--runner", type=click.Choice(["local", "docker"]), default="local", show_default=True)
@click.option("--root", type=FOLDER, default=Path("runs"), show_default=True, help="folder for what the steps write")
@click.option("--cache/--no-cache", default=True, help="take steps that ran before from there")
@click.option("--json", "as_json", is_flag=True, help="print JSON in the last line")
def run(  # noqa: PLR0913  one argument per option
    pipeline: str, params: tuple[str, ...], config: Path | None, runner: Any, root: Path, cache: bool, as_json: bool
) -> None:
    """Run PIPELINE (full, realign, evaluate or a compiled file) on this machine: in processes, or in containers."""
    _needs_kfp()
    from pipelines import local

    package = _package(pipeline)
    local.run(package, _arguments(package, params, config), runner, root, cache=cache)
    if as_json:
        click.echo(json.dumps({"pipeline": package.stem, "state": "SUCCEEDED", "root": str(root.resolve())}))


@click.command()
@_chosen
@_server
@click.option("--name", help="name of the run")
@click.option("--wait", type=float, help="seconds to wait for the end; without it the command returns at once")
@click.option("--cache/--no-cache", default=True, help="take steps that ran before from Kubeflow's cache")
def submit(  # noqa: PLR0913  one argument per option
    pipeline: str,
    params: tuple[str, ...],
    config: Path | None,
    host: str,
    namespace: str,
    experiment: str,
    account: str | None,
    name: str | None,
    wait: float | None,
    cache: bool,
) -> None:
    """Start PIPELINE on a cluster."""
    _needs_kfp()
    from pipelines import remote

    package = _package(pipeline)
    server = Server(host, namespace, experiment, account)
    number = remote.submit(
        server, package, _arguments(package, params, config), name or f"prefrestore {package.stem}", cache=cache
    )
    click.echo(number)
    if wait is not None and (state := remote.wait(server, number, wait)) != "SUCCEEDED":
        raise UserError(f"run {number}: {state}: its steps' logs say why")


@click.command()
@_chosen
@_server
@click.option("--cron", required=True, help="when, in six fields, seconds first: '0 0 3 * * *' is three at night")
@click.option("--name", help="name of the recurring run")
def schedule(  # noqa: PLR0913  one argument per option
    pipeline: str,
    params: tuple[str, ...],
    config: Path | None,
    host: str,
    namespace: str,
    experiment: str,
    account: str | None,
    cron: str,
    name: str | None,
) -> None:
    """Let PIPELINE run on a cluster by the clock, in place of the schedule that had this name."""
    _needs_kfp()
    from pipelines import remote

    package = _package(pipeline)
    server = Server(host, namespace, experiment, account)
    arguments = _arguments(package, params, config)
    click.echo(remote.schedule(server, package, arguments, name or f"prefrestore-{package.stem}", cron))


def _needs_kfp() -> None:
    import importlib.util

    if importlib.util.find_spec("kfp") is None:
        raise UserError("pipeline: kfp is not installed here: pip install 'prefrestore[pipelines]'")


def _package(pipeline: str) -> Path:
    path = PACKAGES / f"{pipeline}.yaml" if pipeline in NAMES else Path(pipeline)
    if not path.is_file():
        raise UserError(f"{pipeline}: is neither a pipeline ({', '.join(NAMES)}) nor a compiled file")
    return path


def _arguments(package: Path, params: tuple[str, ...], config: Path | None) -> dict[str, str]:
    """Return the pipeline's arguments.

    Raises:
        UserError: an unknown one, a missing one, or one that is not NAME=VALUE.
    """
    known = _inputs(package)
    given: dict[str, str] = {}
    if config is not None:
        given["changes"] = json.dumps(configfile.load(config).model_dump(mode="json", by_alias=True))
    if (version := _data_version()) and "data_version" in known:
        given["data_version"] = version
    for param in params:
        name, equals, value = param.partition("=")
        if not equals or name not in known:
            raise UserError(f"--param: {param}: write NAME=VALUE with one of {', '.join(known)}")
        given[name] = value
    if missing := [name for name, needed in known.items() if needed and name not in given]:
        raise UserError(f"{package.stem}: needs {missing[0]}: give -p {missing[0]}=VALUE")
    return given


def _inputs(package: Path) -> dict[str, bool]:
    """Return the parameters of a package, and whether each must be given."""
    spec = next(iter(yaml.safe_load_all(package.read_text(encoding="utf-8"))))
    try:
        rows = spec["root"]["inputDefinitions"]["parameters"]
    except (TypeError, KeyError):
        raise UserError(f"{package}: is no compiled pipeline: prefrestore pipeline compile") from None
    return {name: not row.get("isOptional", False) for name, row in rows.items()}


def _data_version() -> str | None:
    """Return DVC's hash of the pairs in this folder, if DVC made them."""
    if not LOCK.is_file():
        return None
    stages = (yaml.safe_load(LOCK.read_text(encoding="utf-8")) or {}).get("stages", {})
    outs = stages.get("degrade", {}).get("outs", [])
    return next((str(out["md5"]) for out in outs if "md5" in out), None)
