"""Where a release comes from: parents, data, configuration, licence; read from the artifacts that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrestore import artifacts
from prefrestore.errors import UserError

CONFIGURED = ("base", "reward", "policy", "metrics", "verdict")
"""Parts whose sections of the configuration a release carries."""


@dataclass(frozen=True)
class Origin:
    """Nothing volatile, so equal work gives an equal release.

    Attributes:
        model: name of the model.
        licence: of the weights.
        parents: digest of each artifact that the policy was made from or judged with.
        data: digest of the pairs, how they were degraded, how many, under which licences.
        config: section of the configuration by stage.
    """

    model: str
    licence: str
    parents: Mapping[str, str]
    data: Mapping[str, Any]
    config: Mapping[str, Any]


def read_origin(parts: Mapping[str, Path], model: str, licence: str) -> Origin:
    """Gather the origin of a release.

    Raises:
        UserError: a part is no finished artifact, or parts do not belong together.
    """
    manifests = {name: artifacts.read_manifest(parts[name]) for name in CONFIGURED}
    policy = manifests["policy"]
    digests = {name: artifacts.digest(parts[name]) for name in ("base", "reward")}
    for name, digest in digests.items():
        if policy.inputs.get(name, digest) != digest:
            raise UserError(
                f"publish: the policy in {parts['policy']} was made from another {name} than {parts[name]}: run align "
                "again"
            )
    data = parts["metrics"] / "data.json"
    if not data.is_file():
        raise UserError(f"publish: {data} is missing: run evaluate again")
    return Origin(
        model=model,
        licence=licence,
        parents={**digests, "policy": artifacts.digest(parts["policy"])},
        data={"digest": manifests["base"].inputs.get("pairs", "unknown"), **artifacts.read_json(data)},
        config={manifest.stage: dict(manifest.config) for manifest in manifests.values()},
    )
