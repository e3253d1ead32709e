"""Whether two pictures show the same person: dlib's embedding, the chip cut by the HQ face's landmarks."""

from __future__ import annotations

import dlib
import numpy as np

from prefrestore.faces.dlib_models import face_encoder
from prefrestore.faces.geometry import Frame, as_dlib_shape

EMBEDDING_SIZE = 128
CHIP_SIZE, CHIP_PADDING = 150, 0.25

SAME_PERSON_DISTANCE = 0.6
"""Euclidean distance below which dlib's authors call two faces one person (99.4 % on LFW)."""


def embed(frame: Frame) -> np.ndarray:
    """Return the embedding [128] float32 of one face."""
    chip = dlib.get_face_chip(frame.image, as_dlib_shape(frame.landmarks), size=CHIP_SIZE, padding=CHIP_PADDING)
    return np.asarray(face_encoder().compute_face_descriptor(chip), dtype=np.float32)


def identity_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of embeddings [..., 128]; NaN where either is unknown."""
    return np.linalg.norm(first.astype(np.float64) - second.astype(np.float64), axis=-1)


def identity_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return ``2 ** -(distance / 0.6) ** 2`` in (0, 1]: 1 for one picture, 1/2 at the same-person threshold.

    The embedding was trained on Euclidean distance, not on angle: the raw cosine of two strangers is about 0.85. This
    closed form keeps the order of the distance and needs no statistics of a data set.
    """
    return np.exp2(-((identity_distance(first, second) / SAME_PERSON_DISTANCE) ** 2))


def identity_angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the angle between embeddings [..., 128], degrees: "Deg" of the literature, on dlib, not ArcFace."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def verification_rank(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Return for each probe [N, 128] the rank of its own face in ``gallery`` [N, 128] by distance, 1 the best.

    NaN where the probe or its own face is unknown. Ties count against the probe.
    """
    distances = identity_distance(probes[:, None], gallery[None])
    own = np.diagonal(distances)
    with np.errstate(invalid="ignore"):
        closer = (distances <= own[:, None]).sum(1).astype(np.float64)
    return np.where(np.isnan(own), np.nan, closer)
