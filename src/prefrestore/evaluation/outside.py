"""Evaluation outside the graph: frozen pairs from a folder of photographs; two finished evaluations compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefrestore import artifacts
from prefrestore.data.degradation import degrade
from prefrestore.data.images import decode_png
from prefrestore.data.pairs import NUM_LANDMARKS, PairSet, load_pairs
from prefrestore.data.recipes import Recipe, draw_record
from prefrestore.data.sources import folder_candidates
from prefrestore.data.tables import COUNTS, Face
from prefrestore.errors import UserError
from prefrestore.evaluation.given import given_pairs, holds_pairs
from prefrestore.evaluation.significance import Comparison, Question, Resampling, compare, correct
from prefrestore.evaluation.table import CANDIDATE, PER_SAMPLE, per_face, values_of
from prefrestore.faces.extraction import Extraction, extract
from prefrestore.runtime.pool import ordered_map
from prefrestore.runtime.progress import track


@dataclass(frozen=True)
class Freezing:
    """How a folder of photographs becomes frozen pairs."""

    image_size: int
    recipe: Recipe
    seed: int
    workers: int


def frozen_pairs(source: Path, how: Freezing) -> tuple[PairSet, Mapping[str, Any]]:
    """Return evaluation pairs and counts from an artifact ``pairs``, a folder with ``lq`` and ``hq``, or photographs.

    Of photographs, ``val/`` is taken if there is one, else everything; faces are found, aligned and degraded as the
    graph does.

    Raises:
        UserError: the folder is missing, or no face is found in it.
    """
    if (source / artifacts.MANIFEST).is_file():
        return load_pairs(source, "eval"), artifacts.read_json(source / COUNTS)
    if holds_pairs(source):
        pairs, rejected = given_pairs(source, how.image_size)
        return pairs, _counts(len(pairs.ids), Counter(rejected.values()))
    candidates = [row for row in folder_candidates(source, by_name=True) if row.split in (None, "eval")]
    extraction = Extraction(
        how.image_size, aligned=False, split="hash", eval_share=1.0, licence="unknown", seed=how.seed
    )
    work = ordered_map(partial(extract, how=extraction), candidates, workers=how.workers)
    extracted = list(track(work, "find faces", total=len(candidates), unit="images"))
    faces = sorted((face for found in extracted for face in found.faces), key=lambda face: face.id)
    counts = _counts(len(faces), Counter(row.reason for found in extracted for row in found.rejected))
    if not faces:
        told = "; ".join(f"{count} x {reason}" for reason, count in counts["reasons"].items()) or "no image"
        raise UserError(f"{source}: no face to evaluate ({told}): give a folder of photographs with faces")
    return _degraded(faces, how), counts


def _counts(taken: int, reasons: Counter[str]) -> Mapping[str, Any]:
    return {"train": 0, "eval": taken, "rejected": reasons.total(), "reasons": dict(sorted(reasons.items()))}


def _degraded(faces: list[Face], how: Freezing) -> PairSet:
    hq = np.stack([decode_png(face.image) for face in faces])
    records = [draw_record(how.recipe, how.image_size, how.seed, f"{face.id}/0") for face in faces]
    lq = np.stack([degrade(image, record) for image, record in zip(hq, records, strict=True)])
    unknown = (np.nan,) * (2 * NUM_LANDMARKS)
    landmarks = np.array([face.landmarks or unknown for face in faces], np.float32)
    return PairSet(
        ids=tuple(face.id for face in faces),
        captions=tuple(face.caption for face in faces),
        hq=hq,
        lq=lq[:, None],
        records=tuple((record,) for record in records),
        landmarks=landmarks.reshape(-1, NUM_LANDMARKS, 2),
    )


def digest_of(pairs: PairSet) -> str:
    """Return the sha256 of names and pictures: the version of data that is no artifact."""
    total = hashlib.sha256("\0".join(pairs.ids).encode())
    for images in (pairs.hq, pairs.lq):
        total.update(np.ascontiguousarray(images).tobytes())
    return total.hexdigest()


def compare_runs(first: Path, second: Path, margins: Mapping[str, float], how: Resampling) -> list[Comparison]:
    """Compare the aligned models of two finished evaluations, the second as the candidate.

    Raises:
        UserError: a folder holds no evaluation, or they were not made on the same frozen LQ images.
    """
    tables = {name: per_face(_read(folder)) for name, folder in (("first", first), ("second", second))}
    _check_same_faces(tables["first"], tables["second"])
    names = [name for name in tables["first"].columns if name in tables["second"].columns]
    rows = [
        compare(
            Question(name, "second", "first", margins.get(name, 0.0)),
            values_of(tables["second"], CANDIDATE, name),
            values_of(tables["first"], CANDIDATE, name),
            how,
        )
        for name in names
    ]
    return correct([row for row in rows if row.n > 0], how.confidence)


def _read(folder: Path) -> pd.DataFrame:
    path = folder / PER_SAMPLE
    if not path.is_file():
        raise UserError(f"{folder}: holds no evaluation ({PER_SAMPLE} is missing): give the folder of metrics.json")
    return pd.read_parquet(path)


def _check_same_faces(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """The LQ images' own PSNR is their fingerprint: equal faces degraded alike have it equal to the last digit."""
    a, b = first.loc["lq", "psnr"], second.loc["lq", "psnr"]
    if not a.index.equals(b.index):
        shared = len(a.index.intersection(b.index))
        raise UserError(
            f"the evaluations are of other faces ({len(a)} and {len(b)}, {shared} shared): use the same data"
        )
    if not np.array_equal(a, b):
        raise UserError("the evaluations degrade the same faces differently: use the same recipe, seed and size")
