"""Embeddings and landmarks of many faces, in a pool of processes (dlib holds Python's lock)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from types import TracebackType

import numpy as np

from prefrestore.faces.geometry import NUM_LANDMARKS, is_known, to_frame
from prefrestore.faces.identity import EMBEDDING_SIZE, embed
from prefrestore.faces.landmarks import predict_landmarks
from prefrestore.runtime.pool import start_worker


@dataclass(frozen=True)
class FaceAnalysis:
    """What dlib sees in N pictures; NaN rows where the HQ face's geometry is unknown."""

    embeddings: np.ndarray  # [N, 128] float32
    landmarks: np.ndarray  # [N, 68, 2] float32, pixels of the picture


Pair = tuple[np.ndarray, np.ndarray]


def analyse_one(image: np.ndarray, landmarks: np.ndarray, with_landmarks: bool = True) -> Pair:
    """Return embedding [128] and landmarks [68, 2] of one picture [H, W, 3] uint8, framed by ``landmarks`` [68, 2]."""
    points = np.full((NUM_LANDMARKS, 2), np.nan, np.float32)
    if not is_known(landmarks):
        return np.full(EMBEDDING_SIZE, np.nan, np.float32), points
    frame = to_frame(image, landmarks)
    return embed(frame), predict_landmarks(frame) if with_landmarks else points


class FaceAnalyser:
    """Analyses pictures in ``workers`` processes; with one worker in this process. Close it, or use ``with``."""

    def __init__(self, workers: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:  # spawned, not forked: the parent may hold torch's threads
            self._pool = ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
            )

    def __call__(self, images: np.ndarray, landmarks: np.ndarray, with_landmarks: bool = True) -> FaceAnalysis:
        """Analyse ``images`` [N, H, W, 3] uint8 framed by the HQ faces' ``landmarks`` [N, 68, 2].

        Raises:
            ValueError: the counts differ, or the images are not uint8 RGB.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [N, H, W, 3] uint8, found {images.shape} {images.dtype}")
        if len(images) != len(landmarks):
            raise ValueError(f"{len(images)} images but landmarks of {len(landmarks)} faces")
        pairs = list(self._map(images, landmarks, with_landmarks))
        return FaceAnalysis(
            np.array([pair[0] for pair in pairs], np.float32).reshape(-1, EMBEDDING_SIZE),
            np.array([pair[1] for pair in pairs], np.float32).reshape(-1, NUM_LANDMARKS, 2),
        )

    def _map(self, images: np.ndarray, landmarks: np.ndarray, with_landmarks: bool) -> Iterable[Pair]:
        if self._pool is None:
            return map(analyse_one, images, landmarks, repeat(with_landmarks))
        return self._pool.map(analyse_one, images, landmarks, repeat(with_landmarks), chunksize=4)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> FaceAnalyser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
