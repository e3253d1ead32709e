"""What pretraining needs of every training pair, computed once: latents, code ids, queries."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prefrestore.config import ConditionIdsConfig, PretrainConfig
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.models.integrator import Decoded
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.runtime.progress import track
from prefrestore.runtime.seeding import rng
from prefrestore.runtime.training import device_of
from prefrestore.sft.sequences import build_sequences, final_states, queries_of

BATCH = 64


@dataclass(frozen=True)
class TrainingPairs:
    """Training pairs laid flat, one row per (face, variant); odd variants are mirrored.

    Attributes:
        lq: [M, H, W, 3] uint8.
        faces: the HQ faces, each M / F rows in a row, [F, H, W, 3] uint8; see :meth:`hq_images`.
        captions: M texts; some left empty on purpose.
        latents: codec latents of HQ, [M, C, h, w].
        hq_ids: code ids of HQ, [M, n].
        lq_ids: code ids of LQ, [M, n].
    """

    lq: np.ndarray
    faces: np.ndarray
    captions: tuple[str, ...]
    latents: Tensor
    hq_ids: Tensor
    lq_ids: Tensor

    def __len__(self) -> int:
        return len(self.lq)

    def hq_images(self, rows: np.ndarray) -> np.ndarray:
        """Return the HQ images [B, H, W, 3] uint8 of some rows, mirrored where their LQ images are."""
        face, variant = np.divmod(rows, len(self) // len(self.faces))
        return _mirrored(self.faces[face], variant)


def flatten_pairs(pipeline: PrefRestorePipeline, pairs: PairSet, caption_share: float, seed: int) -> TrainingPairs:
    """Lay pairs flat, mirror the odd variants, and encode both sides."""
    faces, variants = pairs.lq.shape[:2]
    face, variant = np.divmod(np.arange(faces * variants), variants)
    lq, hq = (_mirrored(images, variant) for images in (pairs.lq[face, variant], pairs.hq[face]))
    captions = tuple(
        _caption(pairs, int(f), int(v)) if rng(seed, "caption", pairs.ids[f], int(v)).random() < caption_share else ""
        for f, v in zip(face, variant, strict=True)
    )
    return TrainingPairs(
        lq=lq,
        faces=pairs.hq,
        captions=captions,
        latents=_apply("latents", pipeline.encode, hq, pipeline.codec),
        hq_ids=_apply("HQ codes", pipeline.image_tokenizer.ids, hq, pipeline.image_tokenizer),
        lq_ids=_apply("LQ codes", pipeline.image_tokenizer.ids, lq, pipeline.image_tokenizer),
    )


def _apply(name: str, function: Callable[[Tensor], Tensor], images: np.ndarray, network: nn.Module) -> Tensor:
    """Return what a function of images says of all images [M, H, W, 3], batch by batch; kept in main memory."""
    where = device_of(network)
    batches = track(_batches(len(images)), name, total=-(-len(images) // BATCH), unit="batch")
    return torch.cat([function(to_tensor(images[rows]).to(where)).cpu() for rows in batches])


def _mirrored(images: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """Return images [B, H, W, 3], those of odd variants [B] mirrored."""
    return np.where((variant % 2 == 1)[:, None, None, None], images[:, :, ::-1], images)


def _caption(pairs: PairSet, face: int, variant: int) -> str:
    caption = pairs.captions[face]
    return mirrored_caption(caption) if variant % 2 else caption


def mirrored_caption(caption: str) -> str:
    """Return what a caption says of the mirrored picture: left and right change places."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda found: other[found[0]], caption)


@torch.no_grad()
def generated(pipeline: PrefRestorePipeline, data: TrainingPairs) -> tuple[Decoded, float]:
    """Return what the integrator generates for all M samples, and the share of its ids equal to HQ's."""
    parts, where = [], device_of(pipeline.integrator)
    for rows in track(_batches(len(data)), "conditions", total=-(-len(data) // BATCH), unit="batch"):
        said = pipeline.integrate(to_tensor(data.lq[rows]).to(where), data.captions[rows])
        parts.append(tuple(value.cpu() for value in (said.ids, said.queries, said.text)))
    whole = Decoded(*(torch.cat(values) for values in zip(*parts, strict=True)))
    return whole, float((whole.ids == data.hq_ids).float().mean())


def draw_sources(config: ConditionIdsConfig, progress: float, random: np.random.Generator, count: int) -> np.ndarray:
    """Draw for ``count`` samples whose codes they rest on, [count]: ``hq``, ``generated`` or ``corrupted``.

    ``progress`` in [0, 1] is how much of the step lies behind: shares go linearly from ``start`` to ``end``.
    """
    names = ("hq", "generated", "corrupted")
    first, last = (np.array([getattr(mix, name) for name in names]) for mix in (config.start, config.end))
    edges = np.cumsum(first + progress * (last - first))
    return np.array(names)[np.searchsorted(edges[:-1], random.random(count), side="right")]


def corrupt(ids: Tensor, share: float, codebook_size: int, random: np.random.Generator) -> Tensor:
    """Return code ids [B, n] with a share of them, chosen at random, replaced by random codes."""
    replaced = torch.from_numpy(random.random(ids.shape) < share)
    strangers = torch.from_numpy(random.integers(codebook_size, size=ids.shape))
    return torch.where(replaced, strangers, ids)


@torch.no_grad()
def forced_queries(
    pipeline: PrefRestorePipeline, data: TrainingPairs, rows: Tensor, ids: Tensor, config: PretrainConfig
) -> Tensor:
    """Return queries [B, n + 1, D] of some rows on given codes [B, n], as the published code trains."""
    where = device_of(pipeline.integrator)
    captions = [data.captions[row] for row in rows.tolist()]
    sequences = build_sequences(pipeline, pipeline.prompts(data.lq_ids[rows].to(where), captions), ids.to(where))
    return queries_of(final_states(pipeline, sequences), sequences, config.query_span)


def _batches(total: int) -> list[slice]:
    return [slice(start, min(start + BATCH, total)) for start in range(0, total, BATCH)]
