"""``python3 -m components.fetch``: artifacts of an earlier run, or of a release, become artifacts of this one.

A copy, checked by its manifest. An importer would show the address only: its files are not there locally, and the cache
would not see that they changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from components.contract import Exchange
from prefrestore import artifacts, cli
from prefrestore.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Fetch every artifact that the task declares as output."""
    parser = argparse.ArgumentParser(prog="components.fetch", allow_abbrev=False)
    parser.add_argument("--executor-input", required=True)
    parser.add_argument("--root", help="folder or s3:// prefix that holds a folder per artifact")
    parser.add_argument("--champion", type=Path, help="the artifact champion, whose release is taken")
    options = parser.parse_args(arguments)
    exchange = Exchange.parse(options.executor_input)
    root = options.root if options.champion is None else str(_release(options.champion))
    for name in exchange.task["outputs"]["artifacts"]:
        with artifacts.replacing(exchange.output(name)) as folder:
            _copy(f"{root.rstrip('/')}/{name}", folder)
            manifest = artifacts.read_manifest(folder)
            if manifest.artifact != name:
                raise UserError(f"{root}/{name}: holds {manifest.artifact}: give the folder of an earlier run")
        exchange.metadata[name] = {"digest": artifacts.digest(exchange.output(name)), "source": root}
    exchange.write()


def _release(champion: Path) -> Path:
    if artifacts.read_json(champion / "champion.json")["model"] is None:
        raise UserError("model_version: is empty: say which registered version to evaluate, and its digest")
    return champion / "release"


def _copy(source: str, folder: Path) -> None:
    if not source.startswith("s3://"):
        if not Path(source).is_dir():
            raise UserError(f"{source}: no such artifact: give the folder of an earlier run")
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return
    from prefrestore.runtime import storage

    prefix = source.removeprefix("s3://").partition("/")[2] + "/"
    for remote in storage.list_objects(f"{source}/"):
        target = folder / remote.key.removeprefix(prefix)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{remote.uri}: its name leads out of the folder: rename it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(storage.download(remote), target)


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1:])))
