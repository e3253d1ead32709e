"""From a source's candidate to rows of ``faces``: decode, find, align, describe. Runs in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from prefrestore.data.candidates import Candidate, split_by_hash
from prefrestore.data.images import UnreadableError, decode, encode_png, read_file, sharpness
from prefrestore.data.pairs import VIEW
from prefrestore.data.tables import Face, Rejection, Split
from prefrestore.faces.alignment import crop, crop_matrix, ffhq_square, frame, is_aligned, transform
from prefrestore.faces.detection import find_faces, find_landmarks
from prefrestore.faces.views import retoned, shaken
from prefrestore.runtime.seeding import rng

HASH_SIDE = 16
MIN_SCALE = 0.5  # a face may be enlarged at most twice


@dataclass(frozen=True)
class Extraction:
    """How candidates become faces."""

    image_size: int
    aligned: bool
    split: str
    eval_share: float
    licence: str
    seed: int
    views: int = 1


@dataclass(frozen=True)
class Extracted:
    """What one candidate gave; ``split`` is None where only its content could tell."""

    split: Split | None
    faces: tuple[Face, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class Found:
    """A face in an image and its sides: the crop's corners, landmarks and box, in its pixels; None where unknown."""

    square: np.ndarray
    landmarks: np.ndarray | None
    box: np.ndarray | None
    width: int
    height: int


def extract(candidate: Candidate, how: Extraction) -> Extracted:
    """Return the faces of a candidate, or why it gives none; a photograph may hold several."""
    try:
        data = read_file(candidate.payload, candidate.problem)
        image = decode(data)
    except UnreadableError as error:
        return _set_aside(candidate, str(error))
    split = candidate.split or split_by_hash(how.seed, _split_key(candidate, data, how), how.eval_share)
    found = list(_find(image, how))
    if not found:
        return _set_aside(candidate, "no face found")
    small = [np.linalg.norm(face.square[1] - face.square[0]) < MIN_SCALE * how.image_size for face in found]
    return Extracted(
        candidate.split,
        tuple(
            view
            for number, face in enumerate(found)
            if not small[number]
            for view in _views(candidate, _numbered(candidate.id, number, "-face"), image, face, split, how)
        ),
        tuple(
            Rejection(_numbered(candidate.name, number, "#"), "face too small")
            for number in range(len(found))
            if small[number]
        ),
    )


def _set_aside(candidate: Candidate, reason: str) -> Extracted:
    return Extracted(candidate.split, (), (Rejection(candidate.name, reason),))


def _numbered(name: str, number: int, mark: str) -> str:
    return f"{name}{mark}{number}" if number else name


def _split_key(candidate: Candidate, data: bytes, how: Extraction) -> str:
    """Return what decides the split: the person, or the content, so that copies of an image stay together."""
    if how.split == "identity" and candidate.identity:
        return candidate.identity
    return sha256(data).hexdigest()


def _find(image: np.ndarray, how: Extraction) -> Iterator[Found]:
    height, width = image.shape[:2]
    whole = frame(height, width)
    boxes = find_faces(image)
    if how.aligned:
        box = boxes[0] if boxes else None
        yield Found(whole, None if box is None else find_landmarks(image, box), box, width, height)
        return
    for box in boxes:
        landmarks = find_landmarks(image, box)
        square = ffhq_square(landmarks)
        yield Found(whole if is_aligned(square, height, width) else square, landmarks, box, width, height)


def _views(
    candidate: Candidate, face_id: str, image: np.ndarray, found: Found, split: Split, how: Extraction
) -> Iterator[Face]:
    """Yield a face as it is and, of one to train on, further views: cut a little otherwise, in other light."""
    yield _face(candidate, face_id, crop(image, found.square, how.image_size), found, split, how)
    for number in range(1, how.views if split == "train" else 1):
        random = rng(how.seed, "view", face_id, number)
        view = replace(found, square=shaken(found.square, random))
        pixels = retoned(crop(image, view.square, how.image_size), random)
        yield _face(candidate, _numbered(face_id, number, VIEW), pixels, view, split, how)


def _face(candidate: Candidate, face_id: str, pixels: np.ndarray, found: Found, split: Split, how: Extraction) -> Face:
    matrix = crop_matrix(found.square, how.image_size)
    landmarks = None if found.landmarks is None else transform(matrix, found.landmarks)
    return describe(
        pixels,
        landmarks,
        None if found.box is None else _box(transform(matrix, found.box.reshape(2, 2))),
        {
            "id": face_id,
            "split": split,
            "width": found.width,
            "height": found.height,
            "caption": candidate.caption,
            "licence": candidate.licence or how.licence,
            "identity": candidate.identity if how.split == "identity" else "",
        },
    )


def _box(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners.min(0), corners.max(0)])


def describe(
    pixels: np.ndarray, landmarks: np.ndarray | None, box: np.ndarray | None, origin: Mapping[str, Any]
) -> Face:
    """Return the row of a face.

    Args:
        pixels: the aligned face, 8-bit RGB [size, size, 3].
        landmarks: [68, 2] x, y in its pixels; None: unknown.
        box: left, top, right, bottom in its pixels; None: unknown.
        origin: the columns that the pixels do not give.
    """
    data = encode_png(pixels)
    return Face(
        image=data,
        sha256=sha256(data).hexdigest(),
        landmarks=() if landmarks is None else landmarks.ravel().tolist(),
        box=() if box is None else box.tolist(),
        sharpness=sharpness(pixels),
        phash=str(imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE)),
        **origin,
    )
