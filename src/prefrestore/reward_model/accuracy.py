"""How good the reward is on faces it never saw: accuracy, calibration, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from prefrestore.data.pairs import to_tensor
from prefrestore.reward_model.bradley_terry import TIE, A, expected_calibration_error, fit_temperature, reliability
from prefrestore.reward_model.corruption import SPOILERS
from prefrestore.reward_model.dataset import CandidateSet, Comparisons, Scene, face_of
from prefrestore.rewards.network import PreferenceNetwork
from prefrestore.rewards.preference import PreferenceReward
from prefrestore.runtime import seeding

CHANCE = 0.5


@dataclass(frozen=True)
class Decided:
    """Held-out pairs that were decided, seen by one judge.

    Attributes:
        difference: the judge's value of a minus that of b [P].
        wins: 1 where the annotator chose a [P].
    """

    difference: np.ndarray
    wins: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Where the judge and the annotator agree [P]."""
        return (self.difference > 0) == (self.wins > 0)


def judge(values: np.ndarray, pairs: Comparisons) -> Decided:
    """Let per-candidate ``values`` [N] judge the decided pairs; ties and pairs of unknown (NaN) value are left out."""
    known = ~np.isnan(values[pairs.first] - values[pairs.second])
    decided = pairs.take((pairs.outcome != TIE) & known)
    return Decided(values[decided.first] - values[decided.second], (decided.outcome == A).astype(np.float64))


def accuracy_row(decided: Decided) -> dict[str, Any]:
    """Return the share of agreement with its exact 95 % interval, and the number of pairs."""
    number = len(decided.wins)
    if number == 0:
        return {"accuracy": None, "low": None, "high": None, "pairs": 0}
    interval = binomtest(int(decided.right.sum()), number).proportion_ci()
    return {"accuracy": float(decided.right.mean()), "low": interval.low, "high": interval.high, "pairs": number}


def compare_judges(
    logits: np.ndarray, qualities: Mapping[str, np.ndarray], pairs: Comparisons, oracle_name: str
) -> dict[str, Any]:
    """Return the held-out accuracy of the network, of the noise-free oracle and of judges that see HQ.

    ``oracle_name`` is the quality that the annotators of these pairs judged by.

    ``gap_closed`` is (reward - chance) / (oracle - chance); None where no oracle is known (votes of people).
    """
    rows = {"reward": accuracy_row(judge(logits, pairs))}
    rows |= {"oracle" if name == oracle_name else name: accuracy_row(judge(v, pairs)) for name, v in qualities.items()}
    reward, oracle = rows["reward"]["accuracy"], rows.get("oracle", {}).get("accuracy")
    gap = (reward - CHANCE) / (oracle - CHANCE) if reward is not None and oracle and oracle > CHANCE else None
    return {"chance": CHANCE, "judges": rows, "gap_closed": gap}


def agreement(logits: np.ndarray, qualities: Mapping[str, np.ndarray], pairs: Comparisons) -> dict[str, Any]:
    """Return the share of pairs that the network orders as each metric does; every pair once, whoever judged it.

    Pairs in which a metric is equal or unknown (NaN) are left out of its row.
    """
    first, second = np.unique(np.sort(np.stack([pairs.first, pairs.second]), axis=0), axis=1)
    preferred, rows = logits[first] - logits[second], {}
    for name, values in qualities.items():
        better = values[first] - values[second]
        told = np.isfinite(better) & (better != 0)
        rows[name] = accuracy_row(Decided(preferred[told], (better[told] > 0).astype(np.float64)))
    return rows


def by_margin(logits: np.ndarray, pairs: Comparisons, bins: int = 3) -> list[dict[str, Any]]:
    """Return the reward's accuracy over equal-sized bins of its own margin, from unsure to sure."""
    decided = judge(logits, pairs)
    order = np.argsort(np.abs(decided.difference), kind="stable")
    rows = [part for part in np.array_split(order, bins) if len(part)]
    parts = [Decided(decided.difference[part], decided.wins[part]) for part in rows]
    return [{"largest_margin": float(np.abs(part.difference).max()), **accuracy_row(part)} for part in parts]


def calibrate(logits: np.ndarray, pairs: Comparisons, groups: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Fit the temperature on half of the held-out faces and measure calibration on the other half.

    With no decided pair in either half the temperature is 1 and the figures are None.
    """
    owners = [face_of(groups[row]) for row in pairs.first]
    faces = sorted(set(owners), key=lambda face: seeding.derive(seed, "calibrate", face))
    place = {face: number % 2 for number, face in enumerate(faces)}
    half = np.array([place[face] for face in owners], dtype=int)
    fitted, checked = judge(logits, pairs.take(half == 0)), judge(logits, pairs.take(half == 1))
    if not len(fitted.wins) or not len(checked.wins):
        return {"temperature": 1.0, "error_before": None, "error_after": None, "reliability": []}
    temperature = fit_temperature(fitted.difference, fitted.wins)
    before, after = (1 / (1 + np.exp(-checked.difference / t)) for t in (1.0, temperature))
    return {
        "temperature": temperature,
        "error_before": expected_calibration_error(before, checked.wins),
        "error_after": expected_calibration_error(after, checked.wins),
        "reliability": reliability(after, checked.wins),
    }


def member_logits(network: PreferenceNetwork, candidates: CandidateSet, scene: Scene) -> np.ndarray:
    """Return every member's logit of every candidate [members, N], at the temperature stored in the network."""
    rows = np.arange(len(candidates.groups))
    return PreferenceReward(network).members(to_tensor(candidates.images), scene.references(rows)).numpy()


def sensitivity(network: PreferenceNetwork, candidates: CandidateSet, scene: Scene, rows: np.ndarray) -> dict[str, Any]:
    """Return for each way of spoiling the given candidates how often, and by how many log-odds, the score falls."""
    reward, references = PreferenceReward(network), scene.references(rows)
    images = candidates.images[rows]
    strangers = np.roll(images, len(images) // 2, axis=0)
    spoilt = {name: np.stack([spoiler(image, 0.5) for image in images]) for name, spoiler in SPOILERS.items()}
    clean = reward.score(to_tensor(images), references)
    table = {}
    for name, copies in {**spoilt, "identity_swap": strangers}.items():
        fall = clean - reward.score(to_tensor(copies), references)
        table[name] = {"share_lower": float((fall > 0).float().mean()), "mean_fall": float(fall.mean())}
    return table


def by_ensemble(members: np.ndarray, pairs: Comparisons) -> dict[str, Any]:
    """Return the accuracy on pairs the members agree on and on pairs they do not; empty without an ensemble.

    Args:
        members: logits of every member [members, N].
        pairs: held-out pairs.
    """
    seen = [judge(row, pairs) for row in members]
    if len(seen) < 2:
        return {}
    difference = np.stack([one.difference for one in seen])
    agree = np.abs(np.sign(difference).sum(axis=0)) == len(seen)
    mean, wins = difference.mean(axis=0), seen[0].wins
    split = {"members_agree": agree, "members_disagree": ~agree}
    return {name: accuracy_row(Decided(mean[mask], wins[mask])) for name, mask in split.items()}
