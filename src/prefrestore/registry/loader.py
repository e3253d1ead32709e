"""One way from an address to a model: a registered version, a release in a folder or S3, or artifacts of one's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry import release, stores
from prefrestore.registry.versions import Registry

if TYPE_CHECKING:
    from prefrestore.models.pipeline import PrefRestorePipeline

REGISTERED = re.compile(r"models:/(?P<model>[^@/]+)(?:@(?P<alias>[\w-]+)|/(?P<number>\d+))")
DIGEST = re.compile(r"[0-9a-f]{64}")
PARTS = ("base", "policy")


@dataclass(frozen=True)
class Located:
    """A model on this machine.

    Attributes:
        address: what was asked for.
        folder: holds ``base``, ``policy`` and what else the release has.
        digest: of the release, all of whose files were verified; None for artifacts that are no release.
        version: as registered, if it was asked for by the registry.
    """

    address: str
    folder: Path
    digest: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Source:
    """What an address stands for now: equal sources are the same model. An alias moves, so it may be another later."""

    address: str
    place: str
    digest: str | None = None
    version: str | None = None


def resolve(address: str, registry: str) -> Source:
    """Find out what an address stands for, without fetching it.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``s3://BUCKET/PREFIX/DIGEST`` or a folder.
        registry: MLflow address that ``models:/`` asks.

    Raises:
        UserError: malformed, no such version or alias, or the registry does not answer.
    """
    if address.startswith("models:"):
        return _registered(address, registry)
    if address.startswith(stores.S3):
        digest = address.rstrip("/").rpartition("/")[2]
        if not DIGEST.fullmatch(digest):
            raise UserError(f"{address}: is no release: write s3://BUCKET/PREFIX/DIGEST (64 hexadecimal digits)")
        return Source(address, address.rstrip("/"), digest)
    return Source(address, str(stores.folder_at(address)))


def _registered(address: str, registry: str) -> Source:
    found = REGISTERED.fullmatch(address)
    if found is None:
        raise UserError(f"{address}: is no registry address: write models:/NAME@ALIAS or models:/NAME/VERSION")
    if found["number"]:
        version = Registry(registry).get(found["model"], int(found["number"]))
    else:
        aliased = Registry(registry).aliased(found["model"], found["alias"])
        if aliased is None:
            raise UserError(
                f"{address}: no version of {found['model']} is called {found['alias']} in {registry}: promote one, or "
                "give its number"
            )
        version = aliased
    if not version.digest:
        raise UserError(f"{version.name} has no release: it was not published by this program")
    return Source(address, version.source, version.digest, str(version.number))


def locate(source: Source) -> Located:
    """Return the model's folder on this machine, fetched if need be; a release is verified file by file.

    Raises:
        UserError: not there, damaged, changed after release, or it lacks base or policy.
    """
    if source.digest:
        store, named = stores.split(source.place)
        if named != source.digest:
            raise UserError(f"{source.address}: {source.place} is not release {source.digest:.12}: do not use it")
        located = Located(source.address, store.fetch(source.digest), source.digest, source.version)
    else:
        located = Located(source.address, Path(source.place), _verified(Path(source.place)))
    for part in PARTS:
        if not (located.folder / part).is_dir():
            raise UserError(f"{source.address}: has no folder {part}: give a release, or the folder artifacts")
    return located


def _verified(folder: Path) -> str | None:
    """Verify a folder that is a release; say by None that it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder: give a release, or the folder artifacts")
    if not (folder / artifacts.MANIFEST).is_file():
        return None
    digest = release.own_digest(folder)
    release.verify(folder, folder.name if DIGEST.fullmatch(folder.name) else digest)
    return digest


def load(located: Located) -> PrefRestorePipeline:
    """Return the restorer of a located model, base and adapter joined; CPU, ready to run.

    Raises:
        UserError: base or adapter is damaged, or they do not belong together.
    """
    from prefrestore.models.adapters import load_policy
    from prefrestore.models.pipeline import PrefRestorePipeline

    base = located.folder / "base"
    try:
        pipeline: PrefRestorePipeline = PrefRestorePipeline.from_pretrained(base, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{base}: is no restorer ({' '.join(str(error).split()):.160}): publish it again") from None
    load_policy(pipeline, located.folder / "policy", artifacts.digest(base))
    return pipeline
