"""``prefrestore model``: registered versions, and which of them serves."""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefrestore import artifacts, config, configfile
from prefrestore.commands import _drift
from prefrestore.commands._convert import convert
from prefrestore.commands._footprint import show_preset
from prefrestore.commands._ship import ship
from prefrestore.commands.report import aligned, rows
from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.registry.audit import Audit, Decision
    from prefrestore.registry.promotion import Desk
    from prefrestore.registry.versions import Version

CONFIG = click.option(
    "--config", "file", type=click.Path(path_type=Path), default=Path("params.yaml"), help="configuration"
)
WHY = click.option("--why", required=True, help="reason, for the audit log")
JSON = click.option("--json", "as_json", is_flag=True, help="print JSON")
WHO = click.option("--who", help="who decides, for the audit log; the user's name by default")


@click.group()
def command() -> None:
    """List versions, decide which one serves, go back; look at a preset's networks, convert published weights."""


command.add_command(convert)
command.add_command(ship)


def _desk(file: Path) -> Desk:
    from prefrestore.registry.promotion import Desk
    from prefrestore.registry.versions import Registry

    section = configfile.load_section(file, "publish", config.PublishConfig)
    return Desk(Registry(section.registry), _audit(section), section.model)


def _audit(section: config.PublishConfig) -> Audit:
    from prefrestore.registry.audit import Audit
    from prefrestore.registry.stores import open_store

    return Audit(open_store(section.store), section.model)


def _decision(who: str | None, why: str) -> Decision:
    from prefrestore.registry.audit import Decision

    if not why.strip():
        raise UserError("--why: is empty: say why, the audit log keeps it")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Decision(who or getpass.getuser(), now, why.strip())


def _decided(desk: Desk, decide: Callable[[], Any], *, as_json: bool) -> None:
    state = decide()
    if as_json:
        click.echo(json.dumps({"model": desk.model, "champion": state.champion, "previous": state.previous}))
        return
    click.echo(f"{desk.model}: champion {state.champion or 'none'}, previous {state.previous or 'none'}")


@command.command("list")
@JSON
@CONFIG
def list_versions(as_json: bool, file: Path) -> None:
    """List all versions, oldest first."""
    desk = _desk(file)
    versions = desk.registry.versions(desk.model)
    if as_json:
        click.echo(json.dumps({"model": desk.model, "versions": [_plain(version) for version in versions]}))
        return
    table = [["version", "release", "gate", "aliases"]]
    for version in versions:
        gate = {"true": "passed"}.get(version.tags.get("gate.passed", ""), "none")
        table.append([str(version.number), version.digest[:12], gate, ", ".join(version.aliases)])
    for line in aligned(table) if table[1:] else [f"{desk.model}: no version is registered in {desk.registry.uri}"]:
        click.echo(line)


def _plain(version: Version) -> dict[str, Any]:
    """Return a version as JSON values."""
    return {
        "number": version.number,
        "digest": version.digest,
        "source": version.source,
        "aliases": list(version.aliases),
        "tags": dict(version.tags),
    }


@command.command()
@click.argument("number", type=int, required=False)
@click.option("--preset", help="instead of a version: networks of this preset, their parameters, memory and operations")
@JSON
@CONFIG
def show(number: int | None, preset: str | None, as_json: bool, file: Path) -> None:
    """Show where version NUMBER comes from, and check its release; or what a preset's networks cost."""
    if (number is None) == (preset is None):
        raise UserError("model show: name a version, or a preset with --preset")
    if preset is not None:
        show_preset(preset)
        return
    assert number is not None
    desk = _desk(file)
    version = desk.registry.get(desk.model, number)
    if as_json:
        click.echo(json.dumps(_judged(desk, version)))
        return
    click.echo(f"{desk.model} version {number}\naliases: {', '.join(version.aliases) or 'none'}")
    for key, value in sorted(version.tags.items()):
        click.echo(f"{key}: {value}")
    version.store.check(version.digest)
    click.echo(f"release: {version.source} (as released)")


def _judged(desk: Desk, version: Version) -> dict[str, Any]:
    """Return what a person who decides about a version wants to see, as JSON values; its release is checked."""
    from prefrestore.registry.promotion import VERDICT

    version.store.check(version.digest)
    server = desk.registry.uri.startswith(("http://", "https://"))
    page = f"{desk.registry.uri.rstrip('/')}/#/models/{desk.model}/versions/{version.number}" if server else None
    state = desk.audit.state()
    return {
        "model": desk.model,
        **_plain(version),
        "verdict": _member(version, VERDICT),
        "report": f"{version.source}/report/report.html",
        "page": page,
        "champion": state.champion,
        "previous": state.previous,
    }


@command.command()
@click.argument("evaluation", type=click.Path(path_type=Path))
@click.option("--number", type=int, help="version; the champion by default")
@JSON
@CONFIG
def drift(evaluation: Path, number: int | None, as_json: bool, file: Path) -> None:
    """Compare EVALUATION, a version measured on fresh faces, with what that version reached when it was released."""
    desk = _desk(file)
    version = desk.registry.get(desk.model, number if number is not None else _champion(desk))
    released, table = (_member(version, f"metrics/{name}.json") for name in ("metrics", "metric_table"))
    _drift.show(_drift.report(evaluation, released, table, file), version.name, as_json=as_json)


def _champion(desk: Desk) -> int:
    champion = desk.audit.state().champion
    if champion is None:
        raise UserError(f"{desk.model}: there is no champion yet: promote a version, or name one")
    return champion


@command.command()
@click.argument("first", type=int)
@click.argument("second", type=int)
@CONFIG
def diff(first: int, second: int, file: Path) -> None:
    """Compare what two versions reached, each on the evaluation faces of its own run."""
    desk = _desk(file)
    versions = {f"version {number}": desk.registry.get(desk.model, number) for number in (first, second)}
    columns = {
        name: _member(version, "metrics/metrics.json")["columns"]["policy"] for name, version in versions.items()
    }
    table = _member(versions[f"version {second}"], "metrics/metric_table.json")
    for line in aligned(list(rows(columns, table))):
        click.echo(line)


def _member(version: Version, name: str) -> Any:
    from prefrestore.registry.stores import verified_member

    content = verified_member(version.store, version.digest, name)
    if content is None:
        raise UserError(f"{version.name}: its release has no {name}: it was published by an old program")
    return json.loads(content)


@command.command()
@click.argument("address")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="folder to make; a cache by default")
@CONFIG
def pull(address: str, out: Path | None, file: Path) -> None:
    """Fetch the release at ADDRESS, verify every file and print its folder.

    ADDRESS is s3://BUCKET/PREFIX/DIGEST, models:/NAME@ALIAS, models:/NAME/VERSION or a folder.
    """
    from prefrestore.registry.loader import locate, resolve

    registry = ""
    if address.startswith("models:"):
        registry = configfile.load_section(file, "publish", config.PublishConfig).registry
    if out is not None and out.exists():
        raise UserError(f"{out}: exists: give a place where nothing is")
    located = locate(resolve(address, registry))
    if located.digest is None:
        raise UserError(f"{address}: is no release (no manifest), so nothing vouches for it: publish it first")
    if out is not None:
        with artifacts.replacing(out) as target:
            shutil.copytree(located.folder, target, dirs_exist_ok=True)
    click.echo(f"{out or located.folder}")


@command.command()
@click.argument("number", type=int, required=False)
@CONFIG
def pin(number: int | None, file: Path) -> None:
    """Write version NUMBER (the champion by default) into the configuration as what evaluations compare with."""
    desk = _desk(file)
    chosen = number if number is not None else _champion(desk)
    version = desk.registry.get(desk.model, chosen)
    values = {"registry": desk.registry.uri, "model": desk.model, "version": chosen, "digest": version.digest}
    file.write_text(configfile.edited(file.read_text(encoding="utf-8"), "fetch_champion", values), encoding="utf-8")
    click.echo(f"{file}: champion is {desk.model} version {chosen}, release {version.digest:.12}")


@command.command()
@click.argument("number", type=int)
@WHY
@WHO
@click.option("--expect", type=int, help="champion you decide against; another one is an error")
@click.option("--force", is_flag=True, help="without a passed gate; recorded")
@JSON
@CONFIG
def promote(  # noqa: PLR0913  one argument per option
    number: int, why: str, who: str | None, expect: int | None, force: bool, as_json: bool, file: Path
) -> None:
    """Make version NUMBER the champion."""
    from prefrestore.registry import promotion

    desk, decision = _desk(file), _decision(who, why)
    _decided(desk, lambda: promotion.promote(desk, number, decision, expected=expect, force=force), as_json=as_json)


@command.command()
@WHY
@WHO
@JSON
@CONFIG
def rollback(why: str, who: str | None, as_json: bool, file: Path) -> None:
    """Go back to the previous champion."""
    from prefrestore.registry import promotion

    desk, decision = _desk(file), _decision(who, why)
    _decided(desk, lambda: promotion.rollback(desk, decision), as_json=as_json)


@command.command()
@click.argument("number", type=int)
@WHY
@WHO
@JSON
@CONFIG
def reject(number: int, why: str, who: str | None, as_json: bool, file: Path) -> None:
    """Record that version NUMBER is not wanted."""
    from prefrestore.registry import promotion

    desk, decision = _desk(file), _decision(who, why)
    _decided(desk, lambda: promotion.reject(desk, number, decision), as_json=as_json)


@command.command()
@CONFIG
def log(file: Path) -> None:
    """Check the audit log and print it."""
    for entry in _audit(configfile.load_section(file, "publish", config.PublishConfig)).entries():
        forced = " (forced)" if entry.forced else ""
        decision = entry.decision
        click.echo(
            f"{entry.number}  {decision.when}  {decision.who}  {entry.action} {entry.version}{forced}: {decision.why}"
        )
