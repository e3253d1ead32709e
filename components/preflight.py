"""``python3 -m components.preflight``: the first step of every pipeline, on a CPU, before any GPU is asked for.

It resolves what a person chose into one section of configuration per stage, looks at everything outside that the run
will need, and puts the content of the data into the cache's key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components import pools
from components.contract import Exchange
from prefrestore import artifacts, cli, configfile
from prefrestore.config import Config
from prefrestore.errors import UserError
from prefrestore.stage import STAGES

PRESETS = Path("presets")
CHOICES = ("preset", "changes", "data_uri", "votes", "artifacts_uri", "data_version", "registry", "release_store")
PLACE = ("gpu_pool", "gpu_count", "spot", "nodes", "trainer", "train_image")
MODEL = ("model_version", "model_digest")
OPTIONS = (*CHOICES, *PLACE, *MODEL, "shards")
IMPORTED = ("pairs", "candidates", "base", "baseline")
"""Artifacts that the pipelines may take from an earlier run, if they are there."""


def main(arguments: Sequence[str]) -> None:
    """Check the choices and hand them out, stage by stage."""
    parser = argparse.ArgumentParser(prog="components.preflight", allow_abbrev=False)
    for option in ("executor-input", *OPTIONS):
        parser.add_argument(f"--{option}", default="")
    options = parser.parse_args(arguments)
    exchange = Exchange.parse(options.executor_input)
    chosen = {name: str(getattr(options, name)).strip() for name in OPTIONS}
    exchange.values.update(resolve(chosen))
    exchange.write()


def resolve(chosen: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that the other steps get.

    Raises:
        UserError: anything that would fail later, in one line.
    """
    sections = configuration(chosen)
    request = pools.choose(chosen["gpu_pool"], chosen["gpu_count"] or "0", chosen["spot"])
    launch = _launch(chosen, request)
    check_registries(sections)
    check_store(sections["publish"]["store"])
    inside_job = "trainjob" in launch
    parts = [{**sections["degrade"], "shard_index": n, "shard_count": _shards(chosen)} for n in range(_shards(chosen))]
    return {
        **{f"section_{name}": json.dumps(section, sort_keys=True) for name, section in sections.items()},
        "degrade_parts": [json.dumps(part, sort_keys=True) for part in parts],
        "seen_version": version_of_data(chosen, sections),
        "node_selector": request.node_selector,
        "tolerations": request.tolerations,
        "accelerator": request.accelerator,
        "gpus": str(request.count),
        "gpus_parallel": "0" if inside_job else str(request.count),
        "launch": json.dumps(launch, sort_keys=True),
    }


def configuration(chosen: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the sections of the preset with the person's changes, checked."""
    path = PRESETS / f"{chosen['preset']}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml"))) or "none here"
        raise UserError(f"preset: there is no preset {chosen['preset']}: choose from {known}")
    whole = configfile.read_yaml(path)
    for section, values in _changes(chosen["changes"]).items():
        if section not in whole or not isinstance(values, dict):
            raise UserError(f"changes: {section}: is no section of the configuration: choose from {', '.join(whole)}")
        _merge(whole[section], values)
    if uri := chosen["data_uri"]:
        whole["ingest"] |= {"source": "s3" if uri.startswith("s3://") else "folder", "uri": uri}
    if votes := chosen["votes"]:
        whole["collect_preferences"]["votes"] = votes
    for name, key in (("registry", "registry"), ("release_store", "store")):
        if chosen[name]:
            whole["publish"][key] = chosen[name]
    if chosen["registry"]:
        whole["fetch_champion"]["registry"] = chosen["registry"]
    if chosen["model_version"]:
        whole["fetch_champion"] |= {"version": _number(chosen, "model_version"), "digest": chosen["model_digest"]}
    checked = configfile.parse(Config, whole, f"preset {chosen['preset']} with changes")
    return {name: checked.model_dump(mode="json", by_alias=True)[name] for name in STAGES}


def _changes(text: str) -> dict[str, Any]:
    try:
        changes = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(
            f'changes: is no valid JSON ({error}): write for example {{"align": {{"epochs": 20}}}}'
        ) from None
    if not isinstance(changes, dict):
        raise UserError('changes: is no mapping: write for example {"align": {"epochs": 20}}')
    return changes


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _number(chosen: Mapping[str, str], name: str) -> int:
    if not chosen[name].isdecimal() or int(chosen[name]) < 1:
        raise UserError(f"{name}: {chosen[name]!r} is no number: give 1 or more")
    return int(chosen[name])


def _shards(chosen: Mapping[str, str]) -> int:
    return _number({"shards": chosen["shards"] or "1"}, "shards")


def _launch(chosen: Mapping[str, str], request: pools.Request) -> dict[str, Any]:
    """Return how pretrain and align start: one pod, or a TrainJob of several nodes."""
    trainer = chosen["trainer"] or "pod"
    if trainer not in ("pod", "trainjob"):
        raise UserError(f"trainer: {trainer!r} is neither pod nor trainjob")
    if trainer == "pod":
        return {"processes": max(1, request.count)}
    job = {
        "nodes": _number({"nodes": chosen["nodes"] or "1"}, "nodes"),
        "image": chosen["train_image"],
        "accelerator": request.accelerator,
        "gpus": request.count,
        "node_selector": request.node_selector,
        "tolerations": request.tolerations,
    }
    return {"trainjob": job}


def check_registries(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Ask every MLflow that the run will need whether it answers; an embedded one makes itself."""
    from prefrestore.registry import backends

    for uri in sorted({str(sections[name]["registry"]) for name in ("fetch_champion", "publish")}):
        if not uri.startswith(backends.SQLITE):
            backends.open_backend(uri)


def check_store(address: str) -> None:
    """Ask the release store for its audit log, if it is one that has to answer."""
    from prefrestore.registry import stores

    store = stores.open_store(address)
    if address.startswith(stores.S3):
        store.names("audit")


def version_of_data(chosen: Mapping[str, str], sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a name for the content of everything outside that the run reads; it is part of the cache's keys.

    Raises:
        UserError: something is not there or cannot be reached.
    """
    total = hashlib.sha256(chosen["data_version"].encode())
    for uri in _addresses(chosen, sections):
        total.update(f"{uri}\0{_content(uri)}\n".encode())
    return total.hexdigest()[:32]


def _addresses(chosen: Mapping[str, str], sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    root = chosen["artifacts_uri"].rstrip("/")
    for row in STAGES.values():
        if root and row.name == "ingest":
            continue
        for key in row.sources:
            value = sections[row.name].get(key)
            local = isinstance(value, str) and (value.startswith(("s3://", "/")) or Path(value).exists())
            if value and (local or key in ("uri", "votes")):
                yield str(value)
    if root.startswith("s3://"):
        yield f"{root}/"
    elif root:
        yield from (f"{root}/{name}" for name in IMPORTED if (Path(root) / name).exists())
        if not Path(root).is_dir():
            raise UserError(f"artifacts_uri: {root} is no folder: give the folder that holds pairs, base and others")


def _content(uri: str) -> str:
    if uri.startswith("s3://"):
        from prefrestore.runtime import storage

        rows = [f"{remote.key} {remote.etag} {remote.size}" for remote in storage.list_objects(uri)]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()
    if uri.startswith(("http://", "https://", "hf:")):
        return uri
    if not Path(uri).exists():
        raise UserError(f"{uri}: no such folder or file in this container: mount it, or give an s3:// address")
    return artifacts.digest(Path(uri))


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1:])))
