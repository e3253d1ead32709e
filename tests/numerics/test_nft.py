"""The numbers of DiffusionNFT: closed forms, independent float64 code, and the list of reference-method 7.3."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefrestore.rl.advantage import (
    advantages,
    clip_rate,
    informative,
    optimality,
    zero_variance_share,
)
from prefrestore.rl.nft_loss import deviation, nft_loss, noised, normalised_error, spread, total_loss
from prefrestore.rl.schedules import old_decay
from prefrestore.rl.types import Noised
from prefrestore.runtime.ema import ema_decay

FACTOR = 5.0
NAN = math.nan


def samples(count: int = 6, seed: int = 0) -> tuple[Tensor, Noised]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)

    sigma = torch.rand(count, generator=generator, dtype=torch.float64) * 0.9 + 0.1
    return draw(), noised(draw(), draw(), sigma)


def everywhere(values: Tensor | list[float]) -> Tensor:
    """One optimality per sample, the same at every place."""
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def sft_error(velocity: Tensor, sample: Noised) -> Tensor:
    return normalised_error(velocity, sample).mean((1, 2, 3))


def reference_loss(velocity: np.ndarray, old: np.ndarray, sample: Noised, r: np.ndarray, beta: float) -> np.ndarray:
    """Section 4.5 written out sample by sample."""
    losses = []
    for v, v_old, x0, x_t, t, share in zip(
        velocity, old, sample.x0.numpy(), sample.x_t.numpy(), sample.sigma.numpy(), r, strict=True
    ):
        errors = []
        for mixed in (beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v):
            estimate = x_t - t * mixed
            weight = max(np.abs(estimate - x0).mean(), 1e-5)
            errors.append(((estimate - x0) ** 2 / weight).mean())
        losses.append((share * errors[0] + (1 - share) * errors[1]) / beta)
    return np.array(losses)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_loss_equals_the_equations_written_out(beta: float) -> None:
    old, sample = samples()
    velocity, r = samples(seed=1)[0], torch.linspace(0, 1, 6, dtype=torch.float64)
    expected = reference_loss(velocity.numpy(), old.numpy(), sample, r.numpy(), beta)
    np.testing.assert_allclose(nft_loss(velocity, old, sample, everywhere(r), beta).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_at_policy_equal_to_old_the_loss_is_the_sft_error_over_beta(beta: float) -> None:
    old, sample = samples()
    expected = FACTOR * sft_error(old, sample) / beta
    for r in (0.0, 0.3, 0.5, 1.0):
        got = FACTOR * nft_loss(old.clone(), old, sample, everywhere([r] * 6), beta)
        torch.testing.assert_close(got, expected)


@given(r=st.floats(0, 1), beta=st.floats(0.05, 2))
@settings(max_examples=25, deadline=None)
def test_at_policy_equal_to_old_the_gradient_is_2r_minus_1_times_sfts(r: float, beta: float) -> None:
    old, sample = samples()
    policy, plain = old.clone().requires_grad_(), old.clone().requires_grad_()
    nft_loss(policy, old, sample, everywhere([r] * 6), beta).sum().backward()
    sft_error(plain, sample).sum().backward()
    assert policy.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(policy.grad, (2 * r - 1) * plain.grad, rtol=1e-9, atol=1e-12)


def test_optimality_may_differ_from_place_to_place() -> None:
    """Each place pulls with its own (2r - 1); equal values everywhere are the published loss."""
    old, sample = samples()
    r = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    policy, plain = old.clone().requires_grad_(), old.clone().requires_grad_()
    loss = nft_loss(policy, old, sample, r, 0.5)
    torch.testing.assert_close(loss.detach(), sft_error(old, sample) / 0.5)
    loss.sum().backward()
    sft_error(plain, sample).sum().backward()
    torch.testing.assert_close(policy.grad, (2 * r - 1) * plain.grad, rtol=1e-9, atol=1e-12)


def test_old_policy_gets_no_gradient() -> None:
    old, sample = samples()
    old.requires_grad_()
    policy = samples(seed=2)[0].requires_grad_()
    nft_loss(policy, old, sample, everywhere([0.7] * 6), 0.5).sum().backward()
    assert policy.grad is not None
    assert old.grad is None


def test_gradient_descent_on_the_loss_raises_the_probability_of_the_better_sample() -> None:
    """Two samples of one condition, the policy a constant velocity: it moves from their middle to the better one."""
    x0 = torch.tensor([[1.0], [-1.0]]).reshape(2, 1, 1, 1)
    noise = torch.zeros(2, 1, 1, 1)
    sample = noised(x0, noise, torch.ones(2))
    policy = torch.zeros(1, requires_grad=True)
    r = optimality(advantages(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64), "group_std"), 5.0)
    for _ in range(20):
        loss = nft_loss(policy.expand(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), sample, everywhere(r), 0.5).sum()
        (gradient,) = torch.autograd.grad(loss, policy)
        with torch.no_grad():
            policy -= 0.1 * gradient
    # velocity is noise - x0
    assert float(policy.detach()) < -0.1


def test_perfect_prediction_has_no_error_and_no_division_by_zero() -> None:
    _, sample = samples()
    velocity = (sample.x_t - sample.x0) / sample.sigma.reshape(-1, 1, 1, 1)
    assert torch.all(normalised_error(velocity, sample) < 1e-9)


def test_advantages_of_the_published_example() -> None:
    """Section 7.3, item 7."""
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0])
    expected = (reward - 3.75) / (2.681 + 1e-4)
    got = advantages(reward, torch.zeros(4, dtype=torch.int64), "global_std")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


def test_global_and_group_deviation_differ_where_groups_do() -> None:
    reward = torch.tensor([0.0, 2.0, 0.0, 20.0])
    groups = torch.tensor([7, 7, 3, 3])
    per_group = advantages(reward, groups, "group_std")
    torch.testing.assert_close(per_group, torch.tensor([-1.0, 1.0, -1.0, 1.0]), rtol=2e-4, atol=0)
    spread = reward.std(correction=0) + 1e-4
    got = advantages(reward, groups, "global_std")
    torch.testing.assert_close(got, torch.tensor([-1.0, 1.0, -10.0, 10.0]) / spread)


@given(
    rewards=st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12),
    norm=st.sampled_from(["global_std", "group_std"]),
)
@settings(max_examples=50, deadline=None)
def test_group_advantages_sum_to_zero(rewards: list[float], norm: str) -> None:
    groups = torch.tensor([0, 1, 2] * 4)
    got = advantages(torch.tensor(rewards), groups, norm)  # type: ignore[arg-type]
    for group in range(3):
        assert abs(float(got[groups == group].double().sum())) < 1e-4


@pytest.mark.parametrize("norm", ["global_std", "group_std"])
def test_constant_groups_and_unknown_rewards_give_no_signal(norm: str) -> None:
    reward = torch.tensor([3.0, 3.0, 3.0, 1.0, NAN, 2.0, math.inf, NAN, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    got = advantages(reward, groups, norm)  # type: ignore[arg-type]
    assert got[:3].tolist() == [0, 0, 0]
    assert got[[4, 6, 7, 8]].tolist() == [0, 0, 0, 0]
    assert float(got[3]) == pytest.approx(-float(got[5]))
    assert float(got[3]) < 0
    assert got.isfinite().all()


def test_unknown_rewards_leave_the_others_as_they_were() -> None:
    reward, groups = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.int64)
    with_nan = advantages(torch.cat([reward, torch.tensor([NAN])]), torch.zeros(4, dtype=torch.int64), "global_std")
    torch.testing.assert_close(with_nan[:3], advantages(reward, groups, "global_std"))


def test_optimality_and_clip_rate() -> None:
    """Section 7.3, item 8."""
    advantage = torch.tensor([0.0, 5.0, -5.0, 50.0, -50.0, 2.5])
    assert optimality(advantage, 5.0).tolist() == [0.5, 1.0, 0.0, 1.0, 0.0, 0.75]
    assert clip_rate(advantage, 5.0) == pytest.approx(2 / 6)


def test_share_of_groups_without_variance() -> None:
    reward = torch.tensor([1.0, 1.0, 1.0, 2.0, NAN, NAN, 5.0, NAN])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert zero_variance_share(reward, groups) == 0.75
    assert informative(reward, groups).tolist() == [False, False, True, True, False, False, False, False]


def test_schedules_of_the_old_policy() -> None:
    """Section 7.3, item 10, and the two other published ones."""
    assert [old_decay("paper", step) for step in (1, 2, 499, 500, 501, 9999)] == [0.001, 0.002, 0.499, 0.5, 0.5, 0.5]
    assert [old_decay("none", step) for step in (1, 500)] == [0, 0]
    assert [old_decay("delayed", step) for step in (1, 75, 77, 1000)] == [0, 0, 0.015, 0.999]


def test_moving_average_decay() -> None:
    """Section 7.3, item 11: 2/11, 3/12, ... and the cap 0.9 from n = 80."""
    assert [ema_decay(step, 0.9) for step in (1, 2)] == [2 / 11, 3 / 12]
    assert ema_decay(79, 0.9) < 0.9
    assert [ema_decay(step, 0.9) for step in (80, 81, 10_000)] == [0.9, 0.9, 0.9]


def test_deviation_is_the_mean_squared_difference_and_flows_to_the_policy_alone() -> None:
    policy, ref = samples()[0].requires_grad_(), samples(seed=3)[0].requires_grad_()
    got = deviation(policy, ref)
    torch.testing.assert_close(got, (policy - ref).float().square().mean((1, 2, 3)))
    got.sum().backward()
    assert policy.grad is not None
    assert ref.grad is None


def test_total_loss_ignores_samples_of_weight_zero_even_where_they_are_nan() -> None:
    loss, kl = torch.tensor([1.0, NAN, 3.0]), torch.tensor([0.5, NAN, 0.25])
    assert float(total_loss(loss, kl, torch.tensor([1.0, 0.0, 2.0]))) == 1.5 + 6.5


def test_spread_is_the_variance_of_the_first_estimate() -> None:
    """Of x0_hat = m + c * noise it is c^2, whatever m."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 8, 64, 64, generator=draw)
    noises = [torch.randn(3, 8, 64, 64, generator=draw) for _ in range(2)]
    scale = torch.tensor([0.0, 0.5, 2.0])[:, None, None, None]
    found = spread([noise - (mean + scale * noise) for noise in noises], noises)
    torch.testing.assert_close(found, scale.flatten().square(), rtol=0.03, atol=1e-6)
