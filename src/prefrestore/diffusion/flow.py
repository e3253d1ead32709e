"""Flow matching on the straight path between data and noise (reference-method 1.11).

``x_t = (1 - sigma) * x0 + sigma * noise`` and ``velocity = noise - x0``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape ``sigma`` [B] so that it broadcasts over ``like`` [B, ...]."""
    return sigma.to(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return ``x_t`` [B, ...] at noise levels ``sigma`` [B] in [0, 1]."""
    level = per_sample(sigma, x0)
    return (1 - level) * x0 + level * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of the straight path, ``noise - x0``."""
    return noise - x0


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean estimate ``x_t - sigma * velocity``; inverts :func:`interpolate`."""
    return x_t - per_sample(sigma, x_t) * velocity


def uniform_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Draw ``sigma`` [count] from {1/1000, ..., 1000/1000} uniformly (reference-method 1.11)."""
    return torch.randint(1, 1001, (count,), generator=generator).float() / 1000


def flow_matching_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared velocity error, averaged in float32."""
    return (velocity.float() - velocity_target(x0, noise).float()).square().mean()
