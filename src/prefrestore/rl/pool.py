"""Which LQ images a run draws from, and their conditions, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from prefrestore.data.pairs import PairSet, portraits_of, to_tensor
from prefrestore.errors import UserError
from prefrestore.models.condition import Condition
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rl.types import FacePool
from prefrestore.runtime.seeding import rng

ENCODED_TOGETHER = 8
"""LQ images per call of the integrator: a fixed batch shape, so that a condition does not depend on who asked first."""


def draw_pools(pairs: PairSet, pool: int, held_out: int, caption_share: float, seed: int) -> tuple[FacePool, FacePool]:
    """Return the training pool of at most ``pool`` LQ images, and one LQ image each of ``held_out`` other faces.

    Raises:
        UserError: there are not more faces than are to be held out.
    """
    faces = rng("pool", seed).permutation(portraits_of(pairs.ids))  # no view of a face that is held out
    if held_out >= len(faces):
        raise UserError(
            f"align: guard.faces is {held_out}, but the training split has {len(faces)} faces: hold out fewer"
        )
    variants = pairs.lq.shape[1]
    trained = [(int(face), variant) for face in faces[held_out:] for variant in range(variants)]
    order = rng("pool variants", seed).permutation(len(trained))[:pool]
    chosen = [trained[place] for place in order]
    return _take(pairs, chosen, caption_share, seed), _take(pairs, [(int(f), 0) for f in faces[:held_out]], 1.0, seed)


def _take(pairs: PairSet, chosen: Sequence[tuple[int, int]], caption_share: float, seed: int) -> FacePool:
    faces = [face for face, _ in chosen]
    ids = tuple(f"{pairs.ids[face]}/{variant}" for face, variant in chosen)
    captioned = [rng("caption", seed, sample).random() < caption_share for sample in ids]
    return FacePool(
        ids=ids,
        lq=np.stack([pairs.lq[face, variant] for face, variant in chosen]),
        hq=pairs.hq[faces],
        texts=tuple(pairs.captions[face] if told else "" for face, told in zip(faces, captioned, strict=True)),
        landmarks=pairs.landmarks[faces],
    )


class ConditionCache:
    """Conditions of a pool, computed once per LQ image instead of once per copy, step and epoch (6.1, C1)."""

    def __init__(self, pipeline: PrefRestorePipeline, pool: FacePool) -> None:
        self._pipeline = pipeline
        self._pool = pool
        self._blocks: dict[int, Condition] = {}

    def rows(self, rows: Iterable[int]) -> Condition:
        """Return the conditions of the given rows; a row may be taken several times."""
        wanted = list(rows)
        for block in {row // ENCODED_TOGETHER for row in wanted} - self._blocks.keys():
            self._blocks[block] = self._encode(block)
        parts = [self._blocks[row // ENCODED_TOGETHER].select([row % ENCODED_TOGETHER]) for row in wanted]
        return Condition.concatenate(parts)

    @torch.no_grad()
    def _encode(self, block: int) -> Condition:
        start = block * ENCODED_TOGETHER
        # the last block is filled up with the last image
        rows = [min(row, len(self._pool) - 1) for row in range(start, start + ENCODED_TOGETHER)]
        return self._pipeline.encode_condition(to_tensor(self._pool.lq[rows]), [self._pool.texts[row] for row in rows])


def epoch_rows(pool_size: int, groups: int, seed: int, epoch: int) -> list[int]:
    """Return the pool rows of an epoch: shuffled passes over the pool, no row twice within an epoch.

    Raises:
        UserError: the pool is smaller than an epoch.
    """
    if groups > pool_size:
        raise UserError(f"align: groups is {groups}, but there are only {pool_size} LQ images: use fewer groups")
    per_pass = pool_size // groups
    order = rng("pass", seed, epoch // per_pass).permutation(pool_size)
    start = (epoch % per_pass) * groups
    return [int(row) for row in order[start : start + groups]]
