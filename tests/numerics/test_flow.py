"""The flow's algebra and the sampler, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefrestore.diffusion.flow import (
    flow_matching_loss,
    interpolate,
    uniform_sigma,
    velocity_target,
    x0_from_velocity,
)
from prefrestore.diffusion.sampler import Sampler

SHAPE = (3, 2, 4, 4)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_clean_estimate_inverts_interpolation(sigma: float, seed: int) -> None:
    x0, noise, level = draw(seed), draw(seed + 1), torch.full((3,), sigma, dtype=torch.float64)
    x_t = interpolate(x0, noise, level)
    assert torch.allclose(x0_from_velocity(x_t, velocity_target(x0, noise), level), x0, atol=1e-12)


def test_path_ends_at_data_and_noise() -> None:
    x0, noise = draw(0), draw(1)
    assert torch.equal(interpolate(x0, noise, torch.zeros(3)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(3)), noise)


def test_loss_is_zero_at_the_target_and_the_mean_square_elsewhere() -> None:
    x0, noise = draw(0).float(), draw(1).float()
    assert flow_matching_loss(noise - x0, x0, noise) == 0
    assert flow_matching_loss(noise - x0 + 0.5, x0, noise).item() == pytest.approx(0.25, abs=1e-6)


def test_sigma_is_drawn_from_the_published_set() -> None:
    sigma = uniform_sigma(20000, torch.Generator().manual_seed(0))
    assert torch.equal((sigma * 1000).round() / 1000, sigma)
    assert sigma.min() == pytest.approx(0.001)
    assert sigma.max() == 1
    assert sigma.mean().item() == pytest.approx(0.5005, abs=0.01)


@pytest.mark.parametrize("method", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_true_straight_velocity_gives_x0_in_any_number_of_steps(method: str, num_steps: int) -> None:
    x0, noise = draw(0).float(), draw(1).float()
    found = Sampler(num_steps, method)(lambda _x, _sigma: noise - x0, noise)
    assert torch.allclose(found, x0, atol=2e-5)


def test_grid_ends_at_zero() -> None:
    grid = Sampler(30).sigmas()
    assert len(grid) == 31
    assert grid[0] == 1
    assert grid[-1] == 0


def gaussian_velocity(spread: float):  # noqa: ANN201
    """Velocity of data N(0, spread^2): E[noise - x0 | x_t]; the flow maps noise to spread * noise."""

    def velocity(x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.reshape(-1, 1, 1, 1).to(x_t.dtype)
        variance = (1 - level) ** 2 * spread**2 + level**2
        return (level - (1 - level) * spread**2) / variance * x_t

    return velocity


def error(method: str, num_steps: int, spread: float = 0.3) -> float:
    noise = draw(5).float()
    found = Sampler(num_steps, method)(gaussian_velocity(spread), noise)
    return (found - spread * noise).abs().mean().item()


def test_both_solvers_converge_and_the_second_order_one_is_better() -> None:
    assert error("euler", 200) < 0.01
    assert error("dpmpp_2m", 12) < 0.5 * error("euler", 12)
    assert error("dpmpp_2m", 40) < 0.5 * error("dpmpp_2m", 10)


def test_second_order_step_matches_an_independent_formula() -> None:
    """Two steps of DPM-Solver++ 2M written out by hand in float64 (arXiv 2211.01095, algorithm 2)."""
    noise, velocity = draw(7), gaussian_velocity(0.5)
    grid = [1.0, 0.75, 0.5, 0.25, 0.0]
    lam = [-math.inf if s == 1 else math.inf if s == 0 else math.log((1 - s) / s) for s in grid]
    x, previous = noise.clone(), None
    for i in range(4):
        data = x - grid[i] * velocity(x, torch.full((3,), grid[i], dtype=torch.float64))
        estimate = data
        if i >= 2 and i < 3:
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            estimate = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous
        decay = 0.0 if math.isinf(lam[i + 1]) else math.exp(-(lam[i + 1] - lam[i])) if i else 0.0
        x = grid[i + 1] / grid[i] * x - (1 - grid[i + 1]) * (decay - 1) * estimate
        previous = data
    assert torch.allclose(Sampler(4)(velocity, noise).double(), x, atol=1e-5)
