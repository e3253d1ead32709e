"""Candidates that came with imported judgements: their images live in the vote store, and they have no HQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prefrestore import artifacts
from prefrestore.data.images import decode_png, encode_png
from prefrestore.data.pair_import import UNKNOWN_SEED, stored_image, stored_input
from prefrestore.data.pairs import NUM_LANDMARKS, to_tensor
from prefrestore.data.preferences import Judgement
from prefrestore.reward_model.dataset import CandidateSet, Scene
from prefrestore.runtime.shelf import Place, open_shelf

IMPORTED = "imported.parquet"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("group_id", "sha256", "text")] + [(name, pa.binary()) for name in ("image", "lq")]
)


@dataclass(frozen=True)
class ImportedCandidate:
    """One side of an imported judgement, at the size of our own candidates."""

    group_id: str
    sha256: str
    text: str
    image: bytes
    lq: bytes


def gather(judgements: Sequence[Judgement], store: Place, size: int) -> list[ImportedCandidate]:
    """Return the candidates of imported judgements whose three images the store keeps, resized to ``size`` pixels."""
    shelf = open_shelf(store)
    found: dict[tuple[str, str], ImportedCandidate] = {}
    for judgement in judgements:
        source = stored_input(shelf, judgement.lq_digest) if judgement.source == "import" else None
        for digest in (judgement.digest_a, judgement.digest_b):
            image = stored_image(shelf, digest)
            if source is not None and image is not None:
                lq, text = source
                found[judgement.lq_id, digest] = ImportedCandidate(
                    judgement.lq_id, digest, text, encode_png(_resize(image, size)), encode_png(_resize(lq, size))
                )
    return [found[key] for key in sorted(found)]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    smaller = size < min(image.shape[:2])
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def write_imported(folder: Path, candidates: Sequence[ImportedCandidate]) -> None:
    """Write ``imported.parquet``."""
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in candidates], schema=SCHEMA), folder / IMPORTED)


def with_imported(candidates: CandidateSet, scene: Scene, folder: Path) -> tuple[CandidateSet, Scene]:
    """Return candidates and scene, the imported ones of the artifact ``preferences`` after our own; their HQ is NaN."""
    if not (folder / IMPORTED).is_file():
        return candidates, scene
    with artifacts.reading(folder / IMPORTED):
        rows = [ImportedCandidate(**row) for row in pq.read_table(folder / IMPORTED).to_pylist()]
    count, groups = len(rows), tuple(row.group_id for row in rows)
    lq = to_tensor(np.stack([decode_png(row.lq) for row in rows]))
    everything = CandidateSet(
        candidates.digests + tuple(row.sha256 for row in rows),
        candidates.groups + groups,
        candidates.models + ("import",) * count,
        candidates.seeds + (UNKNOWN_SEED,) * count,
        np.concatenate([candidates.images, np.stack([decode_png(row.image) for row in rows])]),
    )
    whole = Scene(
        torch.cat([scene.lq, lq]),
        torch.cat([scene.hq, torch.full_like(lq, torch.nan)]),
        scene.texts + tuple(row.text for row in rows),
        np.concatenate([scene.landmarks, np.full((count, NUM_LANDMARKS, 2), np.nan, np.float32)]),
        scene.ids + groups,
    )
    return everything, whole
