"""Bradley-Terry with ties (Rao and Kupper 1967): probabilities, loss, calibration."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

A, B, TIE = 0, 1, 2
OUTCOMES = {"a": A, "b": B, "tie": TIE, "both_bad": TIE}
"""``both_bad`` says nothing on which is better, so it trains as a tie."""
FEW_COUPLES, USUAL_SMOOTHING = 20, 0.05


def log_probabilities(difference: Tensor, tie_margin: Tensor) -> Tensor:
    """Return log P(a), log P(b), log P(tie) [..., 3] for logit differences [...] and a margin > 0.

    P(a) = sigmoid(d - m), P(b) = sigmoid(-d - m), P(tie) = (e^{2m} - 1) P(a) P(b).
    """
    win, loss = functional.logsigmoid(difference - tie_margin), functional.logsigmoid(-difference - tie_margin)
    tie = torch.log(torch.expm1(2 * tie_margin)) + win + loss
    return torch.stack([win, loss, tie], dim=-1)


def preference_loss(difference: Tensor, tie_margin: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of outcome distributions ``targets`` [..., 3] under the model."""
    return -(targets * log_probabilities(difference, tie_margin)).sum(dim=-1).mean()


def smooth_targets(outcomes: Tensor, smoothing: float) -> Tensor:
    """Return outcome distributions [N, 3]: the observed outcome, of which a share goes evenly to all three."""
    return (1 - smoothing) * functional.one_hot(outcomes, 3).float() + smoothing / 3


def smoothing_from_agreement(share: float, couples: float) -> float:
    """Return the smoothing at which two judges would agree as often as these did.

    If a judge's label is replaced, with probability s, by one of the three outcomes at random, two judges of one pair
    agree with probability ``q + (1 - q) / 3``, ``q = (1 - s)^2``. Pairs that are hard count as noise here, so this is
    at the upper end. With few couples the share says little, and a usual value stands in.

    Args:
        share: share of couples of judgements of one pair that agree.
        couples: their number.
    """
    if couples < FEW_COUPLES:
        return USUAL_SMOOTHING
    return float(1 - np.sqrt(np.clip((3 * share - 1) / 2, 0, 1)))


def fit_temperature(difference: np.ndarray, wins: np.ndarray) -> float:
    """Return the temperature T that minimises the log loss of ``sigmoid(difference / T)`` (Guo et al. 2017).

    A standard normal prior on log T keeps a handful of pairs from driving it to an extreme; a few hundred outweigh it.

    Args:
        difference: logit differences a - b of decided pairs [N].
        wins: 1 where a won [N].
    """
    signed = np.where(wins > 0, difference, -difference)

    def log_loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).sum() + log_temperature**2 / 2)

    return float(np.exp(minimize_scalar(log_loss, bounds=(-3, 3), method="bounded").x))


def expected_calibration_error(probability: np.ndarray, wins: np.ndarray, bins: int = 10) -> float:
    """Return the mean gap between stated and observed share of wins over equal-width bins, weighted by their size."""
    table = reliability(probability, wins, bins)
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["stated"] - row["observed"]) for row in table) / total


def reliability(probability: np.ndarray, wins: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Return the reliability curve: count, mean stated probability and observed share of wins per non-empty bin.

    Each pair is counted from the winner-to-be's side, so stated probabilities lie in [0.5, 1].
    """
    confident = np.maximum(probability, 1 - probability)
    right = (probability >= 0.5) == (wins > 0)
    place = np.minimum(((confident - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        {
            "count": float((place == k).sum()),
            "stated": float(confident[place == k].mean()),
            "observed": float(right[place == k].mean()),
        }
        for k in range(bins)
        if (place == k).any()
    ]
