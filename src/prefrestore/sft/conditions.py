"""What pretraining needs of every training pair, computed once: latents, code ids, queries."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.models.integrator import teacher_forced
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.runtime.progress import track
from prefrestore.runtime.seeding import rng

BATCH = 64


@dataclass(frozen=True)
class TrainingPairs:
    """Training pairs laid flat, one row per (face, variant); odd variants are mirrored.

    Attributes:
        lq: [M, H, W, 3] uint8.
        captions: M texts; some left empty on purpose.
        latents: codec latents of HQ, [M, C, h, w].
        hq_ids: code ids of HQ, [M, n].
        lq_ids: code ids of LQ, [M, n].
    """

    lq: np.ndarray
    captions: tuple[str, ...]
    latents: Tensor
    hq_ids: Tensor
    lq_ids: Tensor

    def __len__(self) -> int:
        return len(self.lq)


def flatten_pairs(pipeline: PrefRestorePipeline, pairs: PairSet, caption_share: float, seed: int) -> TrainingPairs:
    """Lay pairs flat, mirror the odd variants, and encode both sides."""
    faces, variants = pairs.lq.shape[:2]
    face, variant = np.divmod(np.arange(faces * variants), variants)
    mirrored = (variant % 2 == 1)[:, None, None, None]
    lq, hq = pairs.lq[face, variant], pairs.hq[face]
    lq, hq = np.where(mirrored, lq[:, :, ::-1], lq), np.where(mirrored, hq[:, :, ::-1], hq)
    captions = tuple(
        _caption(pairs, int(f), int(v)) if rng(seed, "caption", pairs.ids[f], int(v)).random() < caption_share else ""
        for f, v in zip(face, variant, strict=True)
    )
    hq_parts = [to_tensor(hq[rows]) for rows in _batches(len(lq))]
    return TrainingPairs(
        lq=lq,
        captions=captions,
        latents=torch.cat([pipeline.encode(part) for part in hq_parts]),
        hq_ids=torch.cat([pipeline.image_tokenizer.ids(part) for part in hq_parts]),
        lq_ids=torch.cat([pipeline.image_tokenizer.ids(to_tensor(lq[rows])) for rows in _batches(len(lq))]),
    )


def _caption(pairs: PairSet, face: int, variant: int) -> str:
    caption = pairs.captions[face]
    return mirrored_caption(caption) if variant % 2 else caption


def mirrored_caption(caption: str) -> str:
    """Return what a caption says of the mirrored picture: left and right change places."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda found: other[found[0]], caption)


@torch.no_grad()
def generated_queries(pipeline: PrefRestorePipeline, data: TrainingPairs) -> tuple[Tensor, float]:
    """Return queries [M, n + 1, D] on ids the integrator generates, and the share of ids equal to HQ's."""
    queries, right = [], []
    for rows in track(_batches(len(data)), "conditions", total=-(-len(data) // BATCH), unit="batch"):
        decoded = pipeline.integrate(to_tensor(data.lq[rows]), data.captions[rows])
        queries.append(decoded.queries)
        right.append((decoded.ids == data.hq_ids[rows]).float().mean(1))
    return torch.cat(queries), float(torch.cat(right).mean())


@torch.no_grad()
def forced_queries(pipeline: PrefRestorePipeline, data: TrainingPairs, rows: Tensor) -> Tensor:
    """Return queries [B, n + 1, D] of some rows, teacher-forced on HQ's ids as the published code trains."""
    captions = [data.captions[row] for row in rows.tolist()]
    return teacher_forced(pipeline.integrator, pipeline.prompts(data.lq_ids[rows], captions), data.hq_ids[rows]).queries


def _batches(total: int) -> list[slice]:
    return [slice(start, min(start + BATCH, total)) for start in range(0, total, BATCH)]
