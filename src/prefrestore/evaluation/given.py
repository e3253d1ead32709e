"""Pairs that were made elsewhere: a folder of LQ and one of HQ pictures, matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prefrestore.data.candidates import Candidate, identifier
from prefrestore.data.images import UnreadableError, decode, decode_png, read_file
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.pairs import NUM_LANDMARKS, PairSet
from prefrestore.data.sources import folder_candidates
from prefrestore.data.tables import Face
from prefrestore.errors import UserError
from prefrestore.faces.extraction import Extraction, extract

LQ, HQ = "lq", "hq"
RECIPE = "given"
"""Recipe of pairs whose degradation is not known; their records list no operations."""


def holds_pairs(source: Path) -> bool:
    """Say whether a folder has the subfolders ``lq`` and ``hq``."""
    return all((source / name).is_dir() for name in (LQ, HQ))


def given_pairs(source: Path, image_size: int) -> tuple[PairSet, dict[str, str]]:
    """Return the pairs of ``source/lq`` and ``source/hq``, and why some were set aside, by name.

    Pictures are aligned faces already; a face whose landmarks are not found in HQ stays, its geometry unknown.

    Raises:
        UserError: two files have one stem, an LQ has no HQ, a size is wrong, or nothing is left.
    """
    lq, hq = (_by_stem(source / name) for name in (LQ, HQ))
    if lonely := sorted(set(lq) - set(hq)):
        raise UserError(
            f"{source}: {len(lonely)} of {len(lq)} pictures in {LQ}/ have no reference of the same name in {HQ}/ "
            f"(first: {lonely[0]}): add it, or take them out"
        )
    taken: dict[str, tuple[np.ndarray, Face]] = {}
    rejected: dict[str, str] = {}
    for stem in sorted(lq):
        try:
            taken[identifier(stem)] = _pair(lq[stem], hq[stem], image_size)
        except UnreadableError as error:
            rejected[stem] = str(error)
    if not taken:
        raise UserError(f"{source}: none of the {len(lq)} pairs can be read: give JPEG, PNG, WebP, TIFF or BMP files")
    return _as_set(taken, image_size), rejected


def _by_stem(folder: Path) -> Mapping[str, Path]:
    paths = [row.payload for row in folder_candidates(folder, by_name=False) if isinstance(row.payload, Path)]
    stems = Counter(path.stem for path in paths)
    stem, count = stems.most_common(1)[0]
    if count > 1:
        names = ", ".join(sorted(path.name for path in paths if path.stem == stem))
        raise UserError(f"{folder}: {count} files are called {stem} ({names}): each picture needs a name of its own")
    return {path.stem: path for path in paths}


def _pair(lq: Path, hq: Path, size: int) -> tuple[np.ndarray, Face]:
    images = {path: decode(read_file(path)) for path in (lq, hq)}
    for path, image in images.items():
        if image.shape[:2] != (size, size):
            height, width = image.shape[:2]
            raise UserError(f"{path}: has {width} x {height} px, the model restores {size} x {size}: resize LQ and HQ")
    how = Extraction(size, aligned=True, split="hash", eval_share=1.0, licence="unknown", seed=0)
    return images[lq], extract(Candidate(hq.stem, hq.name, hq), how).faces[0]


def _as_set(taken: Mapping[str, tuple[np.ndarray, Face]], size: int) -> PairSet:
    record = DegradationRecord(
        recipe=RECIPE, severity="any", height=size, width=size, operations=(), rounding="nearest"
    )
    unknown = (np.nan,) * (2 * NUM_LANDMARKS)
    points = np.array([face.landmarks or unknown for _, face in taken.values()], np.float32)
    return PairSet(
        ids=tuple(taken),
        captions=("",) * len(taken),
        hq=np.stack([decode_png(face.image) for _, face in taken.values()]),
        lq=np.stack([lq[None] for lq, _ in taken.values()]),
        records=((record,),) * len(taken),
        landmarks=points.reshape(-1, NUM_LANDMARKS, 2),
    )
