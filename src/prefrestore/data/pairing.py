"""Making the LQ images of faces: shard by shard, in processes, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefrestore.artifacts import Manifest, read_manifest
from prefrestore.data.degradation import degrade
from prefrestore.data.images import decode_png, encode_png
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.data.tables import COUNTS, PAIR_SCHEMA, Face, Pair, shard_paths, write_rows
from prefrestore.errors import UserError


@dataclass(frozen=True)
class Pairing:
    """Which degradations a face gets."""

    recipe: str
    eval_recipe: str
    variants: int
    seed: int


def make_pairs(face: Face, how: Pairing) -> list[Pair]:
    """Return the LQ images of a face: ``variants`` for training, exactly one for evaluation."""
    hq = decode_png(face.image)
    recipe = recipe_named(how.recipe if face.split == "train" else how.eval_recipe)
    pairs = []
    for variant in range(how.variants if face.split == "train" else 1):
        record = draw_record(recipe, hq.shape[:2], how.seed, f"{face.id}/{variant}")
        image = encode_png(degrade(hq, record))
        pairs.append(Pair(face.id, variant, face.split, recipe.name, record.severity, image, record.to_json()))
    return pairs


def chosen_shards(faces: Path, index: int, count: int) -> list[Path]:
    """Return the shards of ``faces`` that part ``index`` of ``count`` works on.

    Raises:
        UserError: there is no such part, or more parts than shards.
    """
    shards = shard_paths(faces, "faces")
    if index >= count:
        raise UserError(f"degrade.shard_index: {index} is not below shard_count {count}: count parts from 0")
    if count > len(shards):
        raise UserError(f"degrade.shard_count: {count} parts of {len(shards)} shards: lower it or ingest.shard_rows")
    return shards[index::count]


def write_pairs(shard: Path, output: Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs of one shard of faces: its HQ table as it is, and the LQ table as it is made."""
    shutil.copyfile(shard, output / shard.name.replace("faces-", "hq-"))
    write_rows(output / shard.name.replace("faces-", "lq-"), PAIR_SCHEMA, pairs)


def merge_pairs(parts: Sequence[Path], output: Path) -> Manifest:
    """Put the parts of a cut-up run together in ``output``; return the manifest of the whole.

    The bytes are those of a run in one piece.

    Raises:
        UserError: a part is missing, doubled, or was made from other faces or by another configuration.
    """
    manifests = [read_manifest(part) for part in parts]
    whole = _whole(manifests[0])
    for part, manifest in zip(parts, manifests, strict=True):
        if manifest.artifact != "pairs" or _whole(manifest) != whole:
            raise UserError(f"{part}: was made from other faces or by another configuration: merge parts of one run")
    places = sorted((manifest.config["shard_index"], manifest.config["shard_count"]) for manifest in manifests)
    if places != [(index, places[0][1]) for index in range(places[0][1])]:
        told = ", ".join(f"{index} of {count}" for index, count in places)
        raise UserError(f"{parts[0]} and others are the parts {told}: give each part of one run exactly once")
    for part in parts:
        for path in sorted(part.glob("*.parquet")):
            shutil.copyfile(path, output / path.name)
    shutil.copyfile(parts[0] / COUNTS, output / COUNTS)
    return whole


def _whole(manifest: Manifest) -> Manifest:
    """Return the manifest of the run in one piece that a part belongs to."""
    return replace(manifest, config={**manifest.config, "shard_index": 0, "shard_count": 1})
