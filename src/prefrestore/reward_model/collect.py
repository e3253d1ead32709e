"""What ``collect_preferences`` does: measure candidates, let the simulated annotators judge, sum up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefrestore import __version__
from prefrestore.config import CollectPreferencesConfig
from prefrestore.data.pairs import to_tensor, to_uint8
from prefrestore.data.preferences import SIMULATED_TIME, Judgement, agreement, pair_id, pixel_digest
from prefrestore.data.tables import Rejection
from prefrestore.reward_model.annotator import Showing, choose, draw_pairs, qualities, utilities
from prefrestore.reward_model.dataset import CandidateSet, Scene, face_of
from prefrestore.reward_model.roles import JUDGES, REWARD, assign_roles, utility_of
from prefrestore.runtime import seeding

JUDGEMENTS, QUALITIES = "preferences.parquet", "qualities.parquet"
INSTRUCTION = "Which restoration is closer to the clean photograph, in structure, edges and sharpness?"
BATCH_SIZE = 128
Columns = Mapping[str, np.ndarray]


def measure_qualities(candidates: CandidateSet, scene: Scene, config: CollectPreferencesConfig) -> Columns:
    """Return every quality of every candidate [N], and their ``utility`` to the reward's oracle and to the judges'."""
    rows = np.arange(len(candidates.groups))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        measured = qualities(to_tensor(candidates.images[batch]), scene.hq[batch])
        for name, values in measured.items():
            parts.setdefault(name, []).append(values.double().numpy())
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    groups = np.array(candidates.groups)
    oracles = {
        REWARD: config.simulated.weights,
        **{role: getattr(config.judges, role).weights for role in JUDGES},
    }
    return {**whole, **{utility_of(role): utilities(whole, w.model_dump(), groups) for role, w in oracles.items()}}


def simulate(
    candidates: CandidateSet, scene: Scene, measured: Columns, config: CollectPreferencesConfig
) -> list[Judgement]:
    """Let simulated annotators judge pairs of different images; a share of the pairs is judged by two of them.

    The faces of a judge are judged by annotators of its own, whose utility is its own.
    """
    annotator = config.simulated
    roles = assign_roles(candidates.groups, config)
    digests = {group: pixel_digest(image) for group, image in _lq_images(candidates, scene).items()}
    showings = [
        showing
        for showing in draw_pairs(candidates.groups, annotator.pairs, config.seed)
        if candidates.digests[showing.a] != candidates.digests[showing.b]
    ]
    judgements = []
    for showing in showings:
        pair = _pair(candidates, showing, digests[candidates.groups[showing.a]])
        role = roles.get(face_of(candidates.groups[showing.a]), REWARD)
        utility, school = measured[utility_of(role)], "" if role == REWARD else f"{role}-"
        first = seeding.derive(config.seed, "annotator", pair["pair_id"]) % annotator.annotators
        twice = (
            annotator.annotators > 1
            and seeding.rng(config.seed, "doubled", pair["pair_id"]).random() < annotator.doubled
        )
        for number in (first, (first + 1) % annotator.annotators)[: 1 + twice]:
            random = seeding.rng(config.seed, "choice", pair["pair_id"], number)
            difference = float(utility[showing.a] - utility[showing.b])
            choice = choose(difference, annotator.temperature, annotator.tie_margin, random)
            judgements.append(
                Judgement(
                    **pair,
                    choice=choice,
                    annotator=f"simulated-{school}{number}",
                    repeat=0,
                    source="simulated",
                    instruction=INSTRUCTION,
                    time=SIMULATED_TIME,
                    tool_version=__version__,
                )
            )
    return judgements


def _lq_images(candidates: CandidateSet, scene: Scene) -> dict[str, np.ndarray]:
    first = {group: row for row, group in reversed(list(enumerate(candidates.groups)))}
    return {group: to_uint8(scene.lq[row]) for group, row in first.items()}


def _pair(candidates: CandidateSet, showing: Showing, lq_digest: str) -> dict[str, Any]:
    a, b = showing.a, showing.b
    return {
        "pair_id": pair_id(lq_digest, candidates.digests[a], candidates.digests[b]),
        "lq_id": candidates.groups[a],
        "lq_digest": lq_digest,
        "digest_a": candidates.digests[a],
        "digest_b": candidates.digests[b],
        "model_a": candidates.models[a],
        "model_b": candidates.models[b],
        "seed_a": candidates.seeds[a],
        "seed_b": candidates.seeds[b],
    }


def write_qualities(folder: Path, candidates: CandidateSet, measured: Columns) -> None:
    """Write the measurements; they tell how good a reward could be, and no reward is trained on them."""
    columns = {"group_id": list(candidates.groups), "sha256": list(candidates.digests), **measured}
    pq.write_table(pa.table(columns), folder / QUALITIES)


def summarise(kept: Sequence[Judgement], rejected: Sequence[Rejection]) -> dict[str, Any]:
    """Count judgements by source, choice and annotator, and name what was set aside."""
    figures = {name: None if math.isnan(value) else value for name, value in agreement(kept).items()}
    return {
        "judgements": len(kept),
        "pairs": len({judgement.pair_id for judgement in kept}),
        "sources": Counter(judgement.source for judgement in kept),
        "choices": Counter(judgement.choice for judgement in kept),
        "annotators": Counter(judgement.annotator for judgement in kept),
        "agreement": figures,
        "rejected": [asdict(rejection) for rejection in rejected],
    }
