"""The pairs that may be voted on, the most informative first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from prefrestore.data.images import decode_png
from prefrestore.data.pairs import to_tensor
from prefrestore.data.preferences import CANDIDATES, INPUTS, pair_id, pixel_digest
from prefrestore.errors import UserError


@dataclass(frozen=True)
class Shown:
    """One restoration of a pair."""

    digest: str
    model: str
    seed: int
    png: bytes


@dataclass(frozen=True)
class Pair:
    """Two restorations of one LQ image, in the order of their digests."""

    pair_id: str
    lq_id: str
    lq_digest: str
    lq_png: bytes
    first: Shown
    second: Shown
    information: float


def load_deck(candidates: Path, reward: Path | None) -> list[Pair]:
    """Return every pair of different restorations of one LQ image.

    Args:
        candidates: artifact of ``sample_candidates``.
        reward: artifact of ``train_reward``: pairs are ordered by what its members disagree on. None: by how far the
            two pictures differ, because a judge can see that.

    Raises:
        UserError: the folder holds no candidates, or no two of one LQ image.
    """
    for name in (CANDIDATES, INPUTS):
        if not (candidates / name).is_file():
            raise UserError(f"{candidates}: holds no candidates ({name} is missing): run sample_candidates first")
    groups: dict[str, list[Shown]] = {}
    for row in pq.read_table(candidates / CANDIDATES).to_pylist():
        groups.setdefault(row["group_id"], []).append(Shown(row["sha256"], row["model"], row["seed"], row["image"]))
    inputs = {row["group_id"]: row for row in pq.read_table(candidates / INPUTS).to_pylist()}
    scores = {} if reward is None else _member_scores(groups, inputs, reward)
    pairs = [pair for group, shown in groups.items() for pair in _pairs_of(group, shown, inputs[group], scores)]
    if not pairs:
        raise UserError(f"{candidates}: no LQ image has two different candidates: draw more samples or step counts")
    return in_rounds(pairs)


def _pairs_of(
    group: str, shown: Sequence[Shown], source: Mapping[str, bytes], scores: Mapping[tuple[str, str], np.ndarray]
) -> list[Pair]:
    unique = sorted({one.digest: one for one in shown}.values(), key=lambda one: one.digest)
    pixels = {one.digest: decode_png(one.png).astype(np.int16) for one in unique}
    lq_digest = pixel_digest(decode_png(source["image"]))
    pairs = []
    for a, b in combinations(unique, 2):
        if scores:
            information = information_gain(scores[group, a.digest] - scores[group, b.digest])
        else:
            information = float(np.abs(pixels[a.digest] - pixels[b.digest]).mean())
        name = pair_id(lq_digest, a.digest, b.digest)
        pairs.append(Pair(name, group, lq_digest, source["image"], a, b, information))
    return pairs


def _member_scores(
    groups: Mapping[str, Sequence[Shown]], inputs: Mapping[str, Mapping[str, str]], reward: Path
) -> dict[tuple[str, str], np.ndarray]:
    """Return every member's calibrated logit [members] of every candidate."""
    from prefrestore.rewards.base import References  # torch, which a page without a reward does not need
    from prefrestore.rewards.network import load_network
    from prefrestore.rewards.preference import PreferenceReward

    scorer = PreferenceReward(load_network(reward))
    scores: dict[tuple[str, str], np.ndarray] = {}
    for group, shown in groups.items():
        images = to_tensor(np.stack([decode_png(one.png) for one in shown]))
        lq = to_tensor(decode_png(inputs[group]["image"]))[None].expand_as(images)  # type: ignore[arg-type]
        texts = [inputs[group]["text"]] * len(shown)
        logits = scorer.members(images, References(lq, None, texts, None, [group] * len(shown))).numpy()
        scores |= {(group, one.digest): logits[:, place] for place, one in enumerate(shown)}
    return scores


def information_gain(differences: np.ndarray) -> float:
    """Return what a vote would tell about the reward, in nats: the members' disagreement on who wins.

    The mutual information of outcome and member (Houlsby et al. 2011, BALD): entropy of the mean probability less the
    mean of the entropies. It is high where members contradict each other surely, not where all are unsure.

    Args:
        differences: logit differences of the members [members].
    """
    probability = 1 / (1 + np.exp(-np.clip(differences, -30, 30)))
    return float(_entropy(probability.mean()) - _entropy(probability).mean())


def _entropy(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def in_rounds(pairs: Sequence[Pair]) -> list[Pair]:
    """Order pairs by information, but so that every LQ image has its best pair shown before any has its second."""
    best_first = sorted(pairs, key=lambda pair: (-pair.information, pair.pair_id))
    seen: dict[str, int] = {}
    rounds: list[list[Pair]] = []
    for pair in best_first:
        turn = seen[pair.lq_id] = seen.get(pair.lq_id, -1) + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(pair)
    return [pair for one in rounds for pair in one]
