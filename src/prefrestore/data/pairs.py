"""Reading the artifacts ``faces`` and ``pairs``: the one door for every other stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefrestore.artifacts import read_json, read_manifest
from prefrestore.data.images import decode_png
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.tables import COUNTS, Split, read_rows, shard_paths
from prefrestore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NUM_LANDMARKS = 68
VIEW = "-view"
"""Between a face's id and the number of a further view of it."""


@dataclass(frozen=True)
class FaceSet:
    """Faces of one split, sorted by id, in memory."""

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    images: np.ndarray  # [N, H, W, 3] uint8
    landmarks: np.ndarray  # [N, 68, 2] float32 x, y in pixels, NaN where unknown

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return int(self.images.shape[1])


@dataclass(frozen=True)
class PairSet:
    """LQ/HQ pairs of one split, sorted by face id, in memory."""

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    hq: np.ndarray  # [N, H, W, 3] uint8
    lq: np.ndarray  # [N, K, H, W, 3] uint8
    records: tuple[tuple[DegradationRecord, ...], ...]  # [N][K]
    landmarks: np.ndarray  # [N, 68, 2] float32, NaN where unknown

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return int(self.hq.shape[1])


def portraits_of(ids: Sequence[str]) -> list[int]:
    """Return the rows of faces that are no further view of another one (``ingest.views``)."""
    known = set(ids)

    def is_view(face_id: str) -> bool:
        portrait, mark, number = face_id.rpartition(VIEW)
        return bool(mark) and number.isdigit() and portrait in known

    return [row for row, face_id in enumerate(ids) if not is_view(face_id)]


def load_faces(folder: Path, split: Split) -> FaceSet:
    """Load the faces of one split.

    Raises:
        UserError: the split is empty.
    """
    return _load_faces(folder, "faces", split)


def load_pairs(folder: Path, split: Split) -> PairSet:
    """Load the pairs of one split.

    Raises:
        UserError: the split is empty, or a face lacks some of its LQ images.
    """
    faces = _load_faces(folder, "hq", split)
    columns = ["id", "variant", "split", "image", "record"]
    variants: dict[str, dict[int, tuple[np.ndarray, DegradationRecord]]] = {}
    for path in shard_paths(folder, "lq"):
        for row in read_rows(path, columns, split):
            item = decode_png(row["image"]), DegradationRecord.from_json(row["record"])
            variants.setdefault(row["id"], {})[row["variant"]] = item
    if set(variants) != set(faces.ids) or len({tuple(sorted(found)) for found in variants.values()}) > 1:
        raise UserError(f"{folder}: LQ and HQ tables do not match: run the stage degrade again")
    rows = [[variants[face_id][variant] for variant in sorted(variants[face_id])] for face_id in faces.ids]
    return PairSet(
        ids=faces.ids,
        captions=faces.captions,
        hq=faces.images,
        lq=np.stack([np.stack([image for image, _ in row]) for row in rows]),
        records=tuple(tuple(record for _, record in row) for row in rows),
        landmarks=faces.landmarks,
    )


def describe_pairs(folder: Path) -> dict[str, Any]:
    """Return as JSON values what the pairs are: how they were degraded, how many, and under which licences."""
    rows = (row["licence"] for path in shard_paths(folder, "hq") for row in read_rows(path, ["licence"]))
    manifest = read_manifest(folder)
    counted = dict(sorted(Counter(rows).items()))
    return {
        "config": dict(manifest.config),
        "faces": manifest.inputs.get("faces"),
        "counts": read_json(folder / COUNTS),
        "licences": counted,
    }


def _load_faces(folder: Path, stem: str, split: Split) -> FaceSet:
    columns = ["id", "split", "caption", "landmarks", "image"]
    rows: list[dict[str, Any]] = [row for path in shard_paths(folder, stem) for row in read_rows(path, columns, split)]
    if not rows:
        raise UserError(f"{folder} has no faces of split {split}: take more images or change ingest.split")
    rows.sort(key=lambda row: row["id"])
    return FaceSet(
        ids=tuple(row["id"] for row in rows),
        captions=tuple(row["caption"] for row in rows),
        images=np.stack([decode_png(row["image"]) for row in rows]),
        landmarks=np.stack([_points(row["landmarks"]) for row in rows]),
    )


def _points(values: Sequence[float]) -> np.ndarray:
    if len(values) == 0:
        return np.full((NUM_LANDMARKS, 2), np.nan, np.float32)
    return np.array(values, np.float32).reshape(NUM_LANDMARKS, 2)


def to_tensor(images: np.ndarray) -> Tensor:
    """Turn 8-bit images [..., H, W, 3] into float tensors [..., 3, H, W] in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3))).float().div_(255)


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float tensors [..., 3, H, W] into 8-bit images [..., H, W, 3], clamped and rounded."""
    levels = images.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1))
