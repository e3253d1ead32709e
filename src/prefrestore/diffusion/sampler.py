"""The one sampler of inference, alignment and evaluation; it ends at sigma 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prefrestore.diffusion.flow import x0_from_velocity

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps ``x_t`` [B, C, h, w] and ``sigma`` [B] to the velocity [B, C, h, w]."""

Watch = Callable[[float, Tensor], None]
"""Is told, after each evaluation, the noise level and the estimate of the restored latents x0 [B, C, h, w]."""


@dataclass(frozen=True)
class Sampler:
    """A deterministic solver of the probability-flow ODE from sigma 1 to sigma 0.

    Attributes:
        num_steps: network evaluations.
        method: ``euler``, or ``dpmpp_2m`` (DPM-Solver++ 2M in data prediction, arXiv 2211.01095, on flow sigmas).
        reaches_zero: False leaves out the last step, as the published alignment does: it ends at ``1 / num_steps``
            after ``num_steps - 1`` evaluations (reference-method 4.1). For comparison only.
    """

    num_steps: int
    method: Literal["euler", "dpmpp_2m"] = "dpmpp_2m"
    reaches_zero: bool = True

    def sigmas(self) -> list[float]:
        """Return the grid, from 1 down to 0, ``num_steps + 1`` values (one less where it does not reach 0)."""
        grid = [1 - index / self.num_steps for index in range(self.num_steps)]
        return [*grid, 0.0] if self.reaches_zero else grid

    @torch.no_grad()
    def __call__(self, velocity: VelocityFunction, noise: Tensor) -> Tensor:
        """Integrate from ``noise`` [B, C, h, w] and return the latent ``x0`` [B, C, h, w] in float32."""
        x_t = noise.float()
        grid = self.sigmas()
        previous: Tensor | None = None
        for index, (sigma, target) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            level = torch.full((x_t.shape[0],), sigma, device=x_t.device)
            x0_hat = x0_from_velocity(x_t, velocity(x_t, level).float(), level)
            estimate = x0_hat
            # the last step is first order: at sigma 0 there is no other, and the published grid does so too
            if self.method == "dpmpp_2m" and previous is not None and index + 2 < len(grid):
                estimate = x0_hat + _second_order_weight(grid, index) * (x0_hat - previous)
            x_t = target / sigma * x_t + (1 - target / sigma) * estimate
            previous = x0_hat
        return x_t


def _second_order_weight(grid: list[float], index: int) -> float:
    """Return 1 / 2r with r = (lambda_s - lambda_{s-1}) / h, lambda = log((1 - sigma) / sigma); 0 where sigma was 1."""
    before, here, after = (_half_log_snr(sigma) for sigma in grid[index - 1 : index + 2])
    ratio = (here - before) / (after - here)
    return 0.5 / ratio if math.isfinite(ratio) else 0.0


def _half_log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def watched(velocity: VelocityFunction, watch: Watch | None) -> VelocityFunction:
    """Return a velocity function that tells ``watch`` the noise level and the estimate of x0."""
    if watch is None:
        return velocity

    def telling(x_t: Tensor, sigma: Tensor) -> Tensor:
        result = velocity(x_t, sigma)
        watch(float(sigma[0]), x0_from_velocity(x_t, result.float(), sigma))
        return result

    return telling
