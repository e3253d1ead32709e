"""Candidates and judgements as tensors, split by face."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prefrestore import artifacts
from prefrestore.config import TrainRewardConfig
from prefrestore.data.images import decode_png
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.data.preferences import CANDIDATES, Judgement
from prefrestore.errors import UserError
from prefrestore.reward_model.bradley_terry import OUTCOMES
from prefrestore.rewards.base import References
from prefrestore.runtime import seeding


@dataclass(frozen=True)
class CandidateSet:
    """All candidates, in memory.

    Attributes:
        digests: sha256 of the PNG bytes.
        groups: LQ sample of each, ``face/variant``.
        models: short digest of the model that drew it.
        seeds: seed it was drawn with.
        images: [N, H, W, 3] uint8.
    """

    digests: tuple[str, ...]
    groups: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    images: np.ndarray


def load_candidates(folder: Path) -> CandidateSet:
    """Read the artifact ``candidates``.

    Raises:
        UserError: they are missing, damaged or none.
    """
    with artifacts.reading(folder / CANDIDATES):
        columns = pq.read_table(folder / CANDIDATES).to_pydict()
        return CandidateSet(
            tuple(columns["sha256"]),
            tuple(columns["group_id"]),
            tuple(columns["model"]),
            tuple(columns["seed"]),
            np.stack([decode_png(data) for data in columns["image"]]),
        )


def face_of(group_id: str) -> str:
    """Return the face id of an LQ sample id ``face/variant``."""
    return group_id.rpartition("/")[0]


@dataclass(frozen=True)
class Scene:
    """What candidates are judged with: row i belongs to candidate i."""

    lq: Tensor
    hq: Tensor
    texts: tuple[str, ...]
    landmarks: np.ndarray
    ids: tuple[str, ...]

    def references(self, rows: Sequence[int] | np.ndarray) -> References:
        """Return the references of the given candidates."""
        index = torch.as_tensor(np.asarray(rows), dtype=torch.long)
        return References(
            self.lq[index],
            self.hq[index],
            [self.texts[row] for row in rows],
            self.landmarks[np.asarray(rows)],
            [self.ids[row] for row in rows],
        )


def build_scene(pairs: PairSet, groups: Sequence[str]) -> Scene:
    """Look up LQ, HQ, text and landmarks of every candidate's group.

    Raises:
        UserError: a group is not among the training pairs.
    """
    place = {face: row for row, face in enumerate(pairs.ids)}
    for group in groups:
        if face_of(group) not in place:
            raise UserError(f"candidates: {group} is not among the training pairs: run sample_candidates again")
    rows = [place[face_of(group)] for group in groups]
    variants = [int(group.rpartition("/")[2]) for group in groups]
    return Scene(
        to_tensor(pairs.lq[rows, variants]),
        to_tensor(pairs.hq[rows]),
        tuple(pairs.captions[row] for row in rows),
        pairs.landmarks[rows],
        tuple(groups),
    )


@dataclass(frozen=True)
class Comparisons:
    """Judged pairs as rows of the candidate set.

    Attributes:
        first: candidate shown as a [P] int64.
        second: candidate shown as b [P] int64.
        outcome: 0 a, 1 b, 2 tie [P] int64.
    """

    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def groups(self, groups: Sequence[str]) -> list[str]:
        """Return the LQ sample of every pair, ``groups`` being those of the candidates."""
        return [groups[row] for row in self.first]

    def take(self, rows: np.ndarray) -> Comparisons:
        """Return some of the pairs, by index or mask."""
        return Comparisons(self.first[rows], self.second[rows], self.outcome[rows])


def to_comparisons(judgements: Sequence[Judgement], candidates: CandidateSet) -> Comparisons:
    """Turn judgements into rows; those on images that are not in the set are left out by ``collect_preferences``.

    Raises:
        UserError: a judgement is on other candidates than these.
    """
    row = {key: place for place, key in enumerate(zip(candidates.groups, candidates.digests, strict=True))}
    for judgement in judgements:
        if not {(judgement.lq_id, judgement.digest_a), (judgement.lq_id, judgement.digest_b)} <= row.keys():
            raise UserError(
                f"preferences: pair {judgement.pair_id:.12} of {judgement.lq_id} is not among these candidates: "
                "run collect_preferences on them"
            )
    return Comparisons(
        np.array([row[judgement.lq_id, judgement.digest_a] for judgement in judgements], np.int64),
        np.array([row[judgement.lq_id, judgement.digest_b] for judgement in judgements], np.int64),
        np.array([OUTCOMES[judgement.choice] for judgement in judgements], np.int64),
    )


def held_out_faces(groups: Sequence[str], config: TrainRewardConfig) -> frozenset[str]:
    """Return ``ceil(held_out * faces)`` faces, at least two and at most half, chosen by seed and name."""
    faces = sorted({face_of(group) for group in groups}, key=lambda face: seeding.derive(config.seed, "held_out", face))
    return frozenset(faces[: min(max(2, math.ceil(config.held_out * len(faces))), len(faces) // 2)])


def split_by_face(
    comparisons: Comparisons, groups: Sequence[str], faces: frozenset[str]
) -> tuple[Comparisons, Comparisons]:
    """Return the pairs of other faces (training) and of ``faces`` (held out)."""
    held = np.array([face_of(groups[row]) in faces for row in comparisons.first], dtype=bool)
    return comparisons.take(~held), comparisons.take(held)


def quality_columns(folder: Path, candidates: CandidateSet) -> Mapping[str, np.ndarray]:
    """Return the simulated annotator's measurements in the candidates' order, NaN for imported ones.

    Empty where nothing was simulated.

    Raises:
        UserError: they are damaged.
    """
    path = folder / "qualities.parquet"
    if not path.is_file():
        return {}
    with artifacts.reading(path):
        table = pq.read_table(path)
        keys = zip(table["group_id"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        row = {key: place for place, key in enumerate(keys)}
        order = [row.get(key, -1) for key in zip(candidates.groups, candidates.digests, strict=True)]
        names = [name for name in table.column_names if name not in ("group_id", "sha256")]
        return {name: np.append(table[name].to_numpy(), np.nan)[order] for name in names}
