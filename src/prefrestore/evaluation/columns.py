"""The columns of the evaluation: what each method makes of the same frozen LQ images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from prefrestore import artifacts
from prefrestore.data.operations import DegradationRecord, Resize
from prefrestore.data.pairs import PairSet, to_tensor, to_uint8
from prefrestore.errors import UserError
from prefrestore.models.adapters import load_policy, using_role
from prefrestore.models.baseline import load_baseline, restore_baseline
from prefrestore.models.condition import Condition
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.runtime.crew import accelerator
from prefrestore.runtime.progress import track
from prefrestore.runtime.seeding import derive


@dataclass(frozen=True)
class Column:
    """One method's results: S samples (1 if it has no chance in it) of N faces, and what they were decoded from."""

    name: str
    samples: np.ndarray  # [S, N, H, W, 3] uint8
    latents: np.ndarray | None = None  # [S, N, C, h, w] float32


@dataclass(frozen=True)
class Sampling:
    """How a generative column is drawn."""

    samples: int
    steps: int
    batch_size: int
    seed: int


def all_columns(
    pairs: PairSet, sampling: Sampling, *, base: Path, policy: Path, baseline: Path | None, champion: Path | None
) -> list[Column]:
    """Return every column of the evaluation, in the order of the table; baseline and champion if there are any."""
    pipeline, conditions = _load(base, pairs, sampling)
    load_policy(pipeline, policy, artifacts.digest(base))
    with using_role(pipeline, "ref"):
        base_samples = sampled_column("base", pipeline, conditions, pairs, sampling)
    return [
        lq_column(pairs),
        bicubic_column(pairs),
        *([baseline_column(baseline, pairs, sampling.batch_size)] if baseline else []),
        base_samples,
        sampled_column("policy", pipeline, conditions, pairs, sampling),
        *(champion_columns(champion, pairs, sampling) if champion else []),
        codec_column(pipeline, pairs, sampling.batch_size),
    ]


def champion_columns(folder: Path, pairs: PairSet, sampling: Sampling) -> list[Column]:
    """Return the champion's column, or none if there is no champion yet."""
    if artifacts.read_json(folder / "champion.json")["model"] is None:
        return []
    release = folder / "release"
    pipeline, conditions = _load(release / "base", pairs, sampling)
    load_policy(pipeline, release / "policy", artifacts.digest(release / "base"))
    return [sampled_column("champion", pipeline, conditions, pairs, sampling)]


def _load(folder: Path, pairs: PairSet, sampling: Sampling) -> tuple[PrefRestorePipeline, Condition]:
    pipeline = PrefRestorePipeline.from_pretrained(folder).to(accelerator().device)
    if pipeline.image_size != pairs.image_size:
        raise UserError(
            f"evaluate: {folder} restores {pipeline.image_size} px, the pairs have {pairs.image_size} px: "
            "use pairs of the model's size"
        )
    return pipeline, encode_conditions(pipeline, pairs, sampling.batch_size)


def lq_column(pairs: PairSet) -> Column:
    """Return the LQ images themselves."""
    return Column("lq", pairs.lq[None, :, 0])


def bicubic_column(pairs: PairSet) -> Column:
    """Return the LQ images reduced to their smallest recorded size and enlarged again by bicubic interpolation."""
    rows = [_bicubic(image, records[0]) for image, records in zip(pairs.lq[:, 0], pairs.records, strict=True)]
    return Column("bicubic", np.stack(rows)[None])


def _bicubic(image: np.ndarray, record: DegradationRecord) -> np.ndarray:
    sizes = [(step.width, step.height) for step in record.operations if isinstance(step, Resize)]
    smallest = min(sizes, default=(image.shape[1], image.shape[0]))
    small = cv2.resize(image, smallest, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_CUBIC)


def baseline_column(folder: Path, pairs: PairSet, batch_size: int) -> Column:
    """Return what the regression U-Net makes of the LQ images."""
    network = load_baseline(folder)
    restored = in_batches(lambda lq: restore_baseline(network, lq), to_tensor(pairs.lq[:, 0]), batch_size)
    return Column("baseline", to_uint8(restored)[None])


def codec_column(pipeline: PrefRestorePipeline, pairs: PairSet, batch_size: int) -> Column:
    """Return the HQ images after the codec's round trip: what no sample can surpass."""
    restored = in_batches(lambda hq: pipeline.decode(pipeline.encode(hq)), to_tensor(pairs.hq), batch_size)
    return Column("codec", to_uint8(restored)[None])


def encode_conditions(pipeline: PrefRestorePipeline, pairs: PairSet, batch_size: int) -> Condition:
    """Return the condition of every LQ image; it is the same for all adapters."""
    lq = to_tensor(pairs.lq[:, 0])
    parts = []
    for rows, real in fixed_batches(len(lq), batch_size):
        condition = pipeline.encode_condition(lq[rows], [pairs.captions[row] for row in rows])
        parts.append(condition.select(range(real)))
    return Condition.concatenate(parts)


@torch.no_grad()
def sampled_column(
    name: str, pipeline: PrefRestorePipeline, conditions: Condition, pairs: PairSet, sampling: Sampling
) -> Column:
    """Draw every face ``sampling.samples`` times; noise depends on face and sample alone, so columns are paired.

    All samples of a face follow each other, so that its condition is prepared once.
    """
    restored = np.empty((sampling.samples, *pairs.hq.shape), np.uint8)
    kept = np.empty((*restored.shape[:2], *pipeline.latent_shape), np.float32)
    batches = list(fixed_batches(len(pairs.ids), max(1, sampling.batch_size // sampling.samples)))
    for faces, real in track(batches, f"evaluate: {name}", total=len(batches), unit="batch"):
        condition = pipeline.prepare(conditions.select(faces))
        for first in range(0, sampling.samples, sampling.batch_size):
            drawn = range(first, min(first + sampling.batch_size, sampling.samples))
            seeds = [derive("evaluate", sampling.seed, pairs.ids[face], sample) for face in faces for sample in drawn]
            latents = pipeline.sample(condition, pipeline.initial_noise(seeds), sampling.steps)
            found = to_uint8(pipeline.decode(latents)), latents.float().cpu().numpy()
            for all_faces, values in zip((restored, kept), found, strict=True):
                by_face = values.reshape(len(faces), len(drawn), *values.shape[1:])
                all_faces[drawn, faces[0] : faces[0] + real] = by_face[:real].swapaxes(0, 1)
    return Column(name, restored, kept)


def fixed_batches(count: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Yield rows of equally large batches and how many of them are real; the last row fills the last batch up.

    A network's bytes depend on its batch shape, so every batch has the same.
    """
    for start in range(0, count, batch_size):
        rows = list(range(start, min(start + batch_size, count)))
        yield rows + [count - 1] * (batch_size - len(rows)), len(rows)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """Apply ``function`` to batches of one fixed shape."""
    return torch.cat([function(images[rows])[:real] for rows, real in fixed_batches(len(images), batch_size)])
