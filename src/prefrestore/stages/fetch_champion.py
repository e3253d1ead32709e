"""Stage fetch_champion: (registry) -> champion. The pinned version, or none.

``champion.json`` is ``{"model": null}``, or names model, version and digest; then ``release/`` holds the release's
folders ``base``, ``policy``, ``reward`` and so on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import FetchChampionConfig
from prefrestore.errors import UserError
from prefrestore.registry.versions import Registry


def run(config: FetchChampionConfig, *, champion: Path) -> None:
    """Copy the pinned release, checked file by file; without a pin write that there is no champion."""
    if config.version is None:
        artifacts.write_json(champion / "champion.json", {"model": None})
        return
    if config.digest is None:
        raise UserError("fetch_champion: version is set but digest is null: pin both with prefrestore model pin")
    version = Registry(config.registry).get(config.model, config.version)
    if version.digest != config.digest:
        raise UserError(
            f"fetch_champion: {config.model} version {config.version} is release {version.digest or 'unknown':.12}, "
            f"but {config.digest:.12} is pinned: pin again with prefrestore model pin"
        )
    shutil.copytree(version.store.fetch(config.digest), champion / "release")
    found = {"model": config.model, "version": config.version, "digest": config.digest}
    artifacts.write_json(champion / "champion.json", found)
