"""Advantages place by place, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from prefrestore.config import LocalConfig
from prefrestore.rl.local import agreed_detail, agreement, high_band, local_advantages, nearness

SAMPLES, SIDE, CELLS = 6, 16, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ripple(amplitude: float) -> Tensor:
    """A checkerboard around grey, [3, SIDE, SIDE]: nothing but high band."""
    board = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 * 2 - 1
    return 0.5 + amplitude * board.float().expand(3, SIDE, SIDE)


def test_nearness_prefers_what_is_nearer_to_hq() -> None:
    x0 = torch.stack([torch.full((2, 3, 3), value) for value in (0.0, 1.0, -2.0, 3.0)])
    x0[:, :, 0, 0] = 1.0
    got = nearness(x0, torch.zeros(2, 3, 3))
    assert got.shape == (4, 1, 3, 3)
    error = np.array([0.0, 1.0, 4.0, 9.0])
    np.testing.assert_allclose(got[:, 0, 1, 1], -(error - error.mean()) / (error.std() + 1e-4), rtol=1e-6)
    assert got[:, 0, 0, 0].tolist() == [0, 0, 0, 0]


def test_agreement_prefers_what_is_nearer_to_the_groups_mean() -> None:
    x0 = noise(SAMPLES, 2, CELLS, CELLS)
    far = (x0 - x0.mean(0)).square().sum(1)
    assert torch.equal(agreement(x0)[:, 0].argmax(0), far.argmin(0))
    torch.testing.assert_close(agreement(x0 + 7), agreement(x0), rtol=1e-4, atol=1e-4)


def test_high_band_is_the_luma_less_its_blur() -> None:
    image = noise(1, 3, SIDE, SIDE).double()
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), image[0].numpy(), axes=1)
    taps = np.array([1, 4, 6, 4, 1]) / 16
    blurred = correlate1d(correlate1d(luma, taps, 0, mode="mirror"), taps, 1, mode="mirror")
    np.testing.assert_allclose(high_band(image)[0, 0], luma - blurred, atol=1e-6)


@pytest.mark.parametrize(("hq", "sign"), [(0.4, 1), (0.01, -1)])
def test_detail_pulls_the_agreed_pattern_towards_hqs_strength(hq: float, sign: int) -> None:
    """Everybody shows the same pattern: who shows more of it is better below HQ's strength, and worse above."""
    strength = torch.linspace(0.1, 0.2, SAMPLES)
    got = agreed_detail(torch.stack([ripple(float(value)) for value in strength]), ripple(hq), CELLS)
    assert got.shape == (SAMPLES, 1, CELLS, CELLS)
    assert (sign * got.diff(dim=0) > 0).all()


def test_detail_that_one_sample_has_alone_is_not_rewarded() -> None:
    """Grain of zero mean over the group has no high band in its mean: nothing to agree on."""
    grain = 0.05 * noise(SAMPLES // 2, 3, SIDE, SIDE)
    images = 0.5 + torch.cat([grain, -grain])
    got = agreed_detail(images, ripple(0.4), CELLS)
    assert got.abs().max() < 1e-3


def test_all_three_sum_to_zero_over_the_group_and_are_added_by_weight() -> None:
    x0, target, hq = noise(SAMPLES, 2, CELLS, CELLS), noise(2, CELLS, CELLS, seed=1), noise(3, SIDE, SIDE, seed=2)
    images = noise(SAMPLES, 3, SIDE, SIDE, seed=3)
    got = local_advantages(x0, target, images, hq, LocalConfig(nearness=0.5, agreement=2.0, detail=0.25))
    parts = 0.5 * nearness(x0, target) + 2.0 * agreement(x0) + 0.25 * agreed_detail(images, hq, CELLS)
    torch.testing.assert_close(got, parts)
    torch.testing.assert_close(got.sum(0), torch.zeros(1, CELLS, CELLS), atol=1e-4, rtol=0)
