"""Candidates: restorations of one LQ image that differ in ways a judge can see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prefrestore.config import SampleCandidatesConfig
from prefrestore.data.images import encode_png
from prefrestore.data.pairs import PairSet, portraits_of, to_tensor, to_uint8
from prefrestore.data.preferences import CANDIDATES, INPUTS
from prefrestore.errors import UserError
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.runtime import seeding
from prefrestore.runtime.progress import track


@dataclass(frozen=True)
class Candidate:
    """One restoration of one LQ image."""

    candidate_id: str
    group_id: str
    face_id: str
    variant: int
    seed: int
    num_steps: int
    model: str
    image: bytes
    sha256: str


SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("group_id", pa.string()),
        ("face_id", pa.string()),
        ("variant", pa.int64()),
        ("seed", pa.int64()),
        ("num_steps", pa.int64()),
        ("model", pa.string()),
        ("image", pa.binary()),
        ("sha256", pa.string()),
    ]
)


INPUT_SCHEMA = pa.schema([("group_id", pa.string()), ("text", pa.string()), ("image", pa.binary())])


@dataclass(frozen=True)
class Task:
    """One LQ image to restore: a row of the pairs and one of its variants."""

    row: int
    variant: int


def choose_tasks(pairs: PairSet, config: SampleCandidatesConfig) -> list[Task]:
    """Choose portraits at random and one variant of each, in the order of the faces' ids.

    Raises:
        UserError: fewer training faces than asked for.
    """
    portraits = portraits_of(pairs.ids)
    if config.num_faces > len(portraits):
        raise UserError(
            f"sample_candidates: num_faces: {config.num_faces} of {len(portraits)} training faces: take fewer"
        )
    rows = sorted(seeding.rng(config.seed, "faces").permutation(portraits)[: config.num_faces].tolist())
    variants = pairs.lq.shape[1]
    return [Task(row, seeding.derive(config.seed, "variant", pairs.ids[row]) % variants) for row in rows]


def draw_candidates(
    pipeline: PrefRestorePipeline, pairs: PairSet, tasks: Sequence[Task], config: SampleCandidatesConfig, model: str
) -> Iterator[Candidate]:
    """Restore every task ``samples`` times at each step count; the condition of an LQ image is computed once.

    ``model`` is the short digest of what is drawn from.
    """
    size = max(1, config.batch_size // config.samples)
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    for chunk in track(chunks, "sample_candidates", total=len(chunks), unit="batch"):
        rows, variants = [task.row for task in chunk], [task.variant for task in chunk]
        lq = to_tensor(pairs.lq[rows, variants])
        with torch.no_grad():
            condition = pipeline.prepare(pipeline.encode_condition(lq, [pairs.captions[row] for row in rows]))
        for num_steps in config.step_counts:
            seeds = [
                seeding.derive(config.seed, "sample", pairs.ids[task.row], task.variant, num_steps, sample)
                for task in chunk
                for sample in range(config.samples)
            ]
            with torch.no_grad():
                latents = pipeline.sample(condition, pipeline.initial_noise(seeds), num_steps)
                images = to_uint8(pipeline.decode(latents))
            for place, (seed, image) in enumerate(zip(seeds, images, strict=True)):
                task = chunk[place // config.samples]
                yield make_candidate(pairs.ids[task.row], task.variant, image, Origin(seed, num_steps, model))


@dataclass(frozen=True)
class Origin:
    """What a candidate was drawn with."""

    seed: int
    num_steps: int
    model: str


def make_candidate(face_id: str, variant: int, image: np.ndarray, origin: Origin) -> Candidate:
    """Encode an image [H, W, 3] uint8 and name it."""
    data = encode_png(image)
    group_id = f"{face_id}/{variant}"
    name = f"{group_id}/{origin.num_steps}-{origin.seed:016x}"
    digest = hashlib.sha256(data).hexdigest()
    return Candidate(name, group_id, face_id, variant, origin.seed, origin.num_steps, origin.model, data, digest)


def write_candidates(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Write ``candidates.parquet``, sorted by candidate id."""
    rows = [asdict(candidate) for candidate in sorted(candidates, key=lambda candidate: candidate.candidate_id)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / CANDIDATES)


def write_inputs(folder: Path, pairs: PairSet, tasks: Sequence[Task]) -> None:
    """Write ``inputs.parquet``: LQ image (PNG) and text of every group, so that candidates can be judged alone."""
    rows = [
        {
            "group_id": f"{pairs.ids[task.row]}/{task.variant}",
            "text": pairs.captions[task.row],
            "image": encode_png(pairs.lq[task.row, task.variant]),
        }
        for task in tasks
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=INPUT_SCHEMA), folder / INPUTS)
