"""The loss of DiffusionNFT (arXiv 2509.16117; reference-method 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefrestore.diffusion.flow import interpolate, per_sample, x0_from_velocity
from prefrestore.rl.types import Noised

SMALLEST_WEIGHT = 1e-5


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
    """Put noise [B, C, h, w] of level ``sigma`` [B] on ``x0``."""
    return Noised(x0, interpolate(x0, noise, sigma), sigma)


def normalised_error(velocity: Tensor, sample: Noised) -> Tensor:
    """Return (x0_hat - x0)^2 / w [B, C, h, w]; its mean over a sample is the supervised (SFT) error l.

    w = max(mean|x0_hat - x0|, 1e-5) of each sample, in float64 and without gradient.
    """
    error = x0_from_velocity(sample.x_t, velocity, sample.sigma) - sample.x0
    weight = error.detach().double().abs().flatten(1).mean(1).clamp(min=SMALLEST_WEIGHT)
    return error.square() / per_sample(weight, error)


def nft_loss(velocity: Tensor, velocity_old: Tensor, sample: Noised, optimality: Tensor, nft_beta: float) -> Tensor:
    """Return (r l_pos + (1 - r) l_neg) / nft_beta, averaged over each sample, [B].

    velocity_pos = beta v + (1 - beta) v_old and velocity_neg = (1 + beta) v_old - beta v, v_old without gradient.
    At v == v_old both errors equal the SFT error, whatever r, and the gradient is (2r - 1) times SFT's. The published
    trainer multiplies by its advantage clip (5) besides; the trainer here does so too.

    Args:
        velocity: of the policy, [B, C, h, w].
        velocity_old: of the old policy, [B, C, h, w].
        sample: the noised samples.
        optimality: the paper's r in [0, 1], one value per sample and place, [B, 1, h, w] (or [B, 1, 1, 1]).
        nft_beta: the paper's beta.
    """
    old = velocity_old.detach()
    velocity_pos = nft_beta * velocity + (1 - nft_beta) * old
    velocity_neg = (1 + nft_beta) * old - nft_beta * velocity
    error_pos = normalised_error(velocity_pos, sample)
    error_neg = normalised_error(velocity_neg, sample)
    return ((optimality * error_pos + (1 - optimality) * error_neg) / nft_beta).flatten(1).mean(1)


def deviation(velocity: Tensor, other: Tensor) -> Tensor:
    """Return the mean squared difference of two velocities, one value per sample [B]; to ``ref`` it is the KL term."""
    return (velocity - other.detach()).float().square().flatten(1).mean(1)


def spread(velocities: Sequence[Tensor], noises: Sequence[Tensor]) -> Tensor:
    """Return half the mean squared distance of the estimates of x0 from two noises at sigma 1, per sample [B].

    Its expectation is the variance of the first estimate over the noise: what is left to chance in one step.
    """
    first, second = (noise - velocity for noise, velocity in zip(noises, velocities, strict=True))
    return (first - second).float().square().flatten(1).mean(1) / 2


def total_loss(policy_loss: Tensor, kl: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum over samples of policy loss and KL term, all [B]; samples of weight 0 leave no trace."""
    return torch.where(weight > 0, weight * (policy_loss + kl), 0.0).sum()
