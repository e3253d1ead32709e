"""Rewards that look at the face with dlib: identity and landmarks, geometry always from HQ."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from prefrestore.data.pairs import to_uint8
from prefrestore.faces.analysis import FaceAnalyser, FaceAnalysis
from prefrestore.faces.identity import identity_similarity
from prefrestore.faces.landmarks import landmark_distance
from prefrestore.rewards.base import References

LANDMARK_HALF = 16.7
"""Distance, per cent of the interocular distance, that scores 1/2: the paper's 20 px of 512 (reference-method 4.6), the
eyes of an FFHQ-aligned face being 120 px apart."""


class FaceReader:
    """Runs dlib once per picture: HQ pictures are remembered for good, restored ones until the next batch.

    One reader serves all rewards of a composite. Close it, for it may hold processes.
    """

    def __init__(self, workers: int) -> None:
        self._analyser = FaceAnalyser(workers)
        self._hq: dict[bytes, FaceAnalysis] = {}
        self._restored: tuple[bytes, FaceAnalysis] | None = None
        self.analysed = 0

    def read(self, restored: Tensor, references: References) -> tuple[FaceAnalysis, FaceAnalysis] | None:
        """Return what dlib sees in the restored and in the HQ images, or None without HQ or its landmarks."""
        if references.hq is None or references.landmarks is None:
            return None
        landmarks = np.asarray(references.landmarks, np.float32)
        hq = self._read_hq(to_uint8(references.hq), landmarks)
        images = to_uint8(restored)
        key = _digest(images, landmarks)
        if self._restored is None or self._restored[0] != key:
            self._restored = (key, self._analyse(images, landmarks))
        return self._restored[1], hq

    def _read_hq(self, images: np.ndarray, landmarks: np.ndarray) -> FaceAnalysis:
        keys = [_digest(*pair) for pair in zip(images, landmarks, strict=True)]
        new = list({key: row for row, key in enumerate(keys) if key not in self._hq}.items())
        if new:
            rows = [row for _, row in new]
            found = self._analyse(images[rows], landmarks[rows])
            for place, (key, _) in enumerate(new):
                self._hq[key] = FaceAnalysis(found.embeddings[place], found.landmarks[place])
        known = [self._hq[key] for key in keys]
        return FaceAnalysis(np.stack([k.embeddings for k in known]), np.stack([k.landmarks for k in known]))

    def _analyse(self, images: np.ndarray, landmarks: np.ndarray) -> FaceAnalysis:
        self.analysed += len(images)
        return self._analyser(images, landmarks)

    def close(self) -> None:
        """End the processes."""
        self._analyser.close()


class IdentityReward:
    """Similarity of dlib embeddings in (0, 1] (``faces.identity.identity_similarity``).

    The same network measures identity in the evaluation; wherever it is reported, that is said.
    """

    name = "identity"

    def __init__(self, reader: FaceReader) -> None:
        self._reader = reader

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN where the HQ face's geometry is unknown."""
        seen = self._reader.read(restored, references)
        if seen is None:
            return torch.full((len(restored),), torch.nan)
        return torch.from_numpy(identity_similarity(seen[0].embeddings, seen[1].embeddings)).float()


class LandmarksReward:
    """``1 / (1 + d / 16.7)``, d the mean distance of 68 points in per cent of the interocular distance; in (0, 1].

    The form is that of the paper's LMD reward (reference-method 4.6), on dlib's points. Both sides are predicted, so
    that two equal pictures score 1.
    """

    name = "landmarks"

    def __init__(self, reader: FaceReader) -> None:
        self._reader = reader

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN where the HQ face's geometry is unknown."""
        seen = self._reader.read(restored, references)
        if seen is None:
            return torch.full((len(restored),), torch.nan)
        distance = landmark_distance(seen[0].landmarks, seen[1].landmarks)
        return torch.from_numpy(1 / (1 + distance / LANDMARK_HALF)).float()


def _digest(*arrays: np.ndarray) -> bytes:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.digest()
