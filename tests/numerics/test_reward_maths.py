"""Reward maths against closed forms and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from prefrestore.reward_model.accuracy import agreement
from prefrestore.reward_model.annotator import choose, draw_pairs, gradient_magnitude, pooled_std, qualities, utilities
from prefrestore.reward_model.bradley_terry import (
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    preference_loss,
    reliability,
    smooth_targets,
    smoothing_from_agreement,
)
from prefrestore.reward_model.dataset import Comparisons
from prefrestore.rewards.composite import CompositeReward, Part, count_nan, standardise_in_groups
from prefrestore.rewards.faces import FaceReader
from prefrestore.rewards.structure import low_band_distance, ms_ssim, ssim_terms, usable_scales


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_scale_of_ssim_is_that_of_skimage() -> None:
    first = images(1, 3, 40, 36)
    second = (first + 0.1 * images(1, 3, 40, 36, seed=1)).clamp(0, 1)
    luminance, contrast = ssim_terms(first, second)
    expected = structural_similarity(
        first[0].numpy(),
        second[0].numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float((luminance * contrast).mean()) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_multiplies_the_scales_with_their_exponents() -> None:
    first = images(2, 3, 32, 32)
    second = (0.8 * first + 0.2 * images(2, 3, 32, 32, seed=1)).clamp(0, 1)
    _, fine = ssim_terms(first, second)
    small = [torch.nn.functional.avg_pool2d(x, 2) for x in (first, second)]
    luminance, contrast = ssim_terms(*small)
    a, b = 0.0448 / (0.0448 + 0.2856), 0.2856 / (0.0448 + 0.2856)
    expected = fine.mean(dim=(1, 2, 3)) ** a * (luminance * contrast).mean(dim=(1, 2, 3)) ** b
    torch.testing.assert_close(ms_ssim(first, second), expected)
    torch.testing.assert_close(ms_ssim(first, first), torch.ones(2, dtype=torch.float64))


def test_scales_are_as_many_as_fit() -> None:
    assert [usable_scales(side) for side in (11, 21, 22, 32, 64, 128, 176, 512)] == [1, 1, 2, 2, 3, 4, 5, 5]
    with pytest.raises(ValueError, match="smaller than the SSIM window"):
        usable_scales(10)


def test_low_band_distance_of_a_constant_shift_is_the_shift() -> None:
    first = images(2, 3, 32, 32) / 2
    torch.testing.assert_close(low_band_distance(first + 0.25, first), torch.full((2,), 0.25, dtype=torch.float64))
    checkerboard = torch.ones(1, 3, 32, 32).mul(0.1)
    checkerboard[..., ::2] *= -1
    assert float(low_band_distance(checkerboard, torch.zeros_like(checkerboard))) == pytest.approx(0, abs=1e-7)


def test_groups_are_standardised_each_on_its_own_as_numpy_does() -> None:
    values, group = images(12).float(), torch.tensor([5, 5, 5, 2, 2, 2, 2, 9, 9, 9, 9, 9])
    expected = np.zeros(12)
    for name in (5, 2, 9):
        mask = (group == name).numpy()
        member = values.numpy().astype(np.float64)[mask]
        expected[mask] = (member - member.mean()) / member.std()
    np.testing.assert_allclose(standardise_in_groups(values, group).numpy(), expected, rtol=1e-5)


def test_constant_groups_and_nan_give_no_signal() -> None:
    nan = float("nan")
    values = torch.tensor([0.3, 0.3, 0.3, 1.0, nan, 3.0, nan, nan, nan, 7.0, nan, nan])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    expected = torch.tensor([0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=torch.float32)
    torch.testing.assert_close(standardise_in_groups(values, group), expected)


def test_totals_weigh_standardised_parts() -> None:
    composite = CompositeReward((), {"p": Part(2.0, 1.0, 0.5), "q": Part(0.5, 0.0, 4.0)}, FaceReader(1))
    parts = {"p": torch.tensor([1.0, 2.0, 1.0]), "q": torch.tensor([4.0, 4.0, float("nan")])}
    totals = composite.totals(parts)
    torch.testing.assert_close(totals[:2], torch.tensor([0.5, 4.5]))
    assert totals[2].isnan()
    group = composite.group_totals(parts, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(group, 2 * standardise_in_groups(parts["p"], torch.zeros(3, dtype=torch.long)))
    assert count_nan(parts) == {"p": 0, "q": 1}


def test_scale_of_one_part_does_not_matter_within_groups() -> None:
    composite = CompositeReward((), {"p": Part(1.0, 0, 1), "q": Part(1.0, 0, 1)}, FaceReader(1))
    group = torch.arange(20) // 5
    parts = {"p": images(20).float(), "q": images(20, seed=1).float()}
    scaled = {"p": parts["p"], "q": 1000 * parts["q"] - 7}
    torch.testing.assert_close(
        composite.group_totals(parts, group), composite.group_totals(scaled, group), rtol=1e-3, atol=1e-3
    )


def test_outcome_probabilities_sum_to_one_and_are_rao_and_kuppers() -> None:
    difference, margin = torch.linspace(-4, 4, 17, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    win, loss, tie = log_probabilities(difference, margin).exp().unbind(-1)
    torch.testing.assert_close(win + loss + tie, torch.ones_like(win))
    strength, threshold = difference.exp(), margin.exp()  # pi_a / pi_b and theta of the paper
    torch.testing.assert_close(win, strength / (strength + threshold))
    torch.testing.assert_close(loss, 1 / (1 + threshold * strength))


def test_loss_of_even_pairs_and_smoothing() -> None:
    zero, tiny = torch.zeros(3, dtype=torch.float64), torch.tensor(1e-6, dtype=torch.float64)
    decided = smooth_targets(torch.tensor([0, 1, 0]), 0.0).double()
    assert float(preference_loss(zero, tiny, decided)) == pytest.approx(np.log(2), abs=1e-5)
    torch.testing.assert_close(smooth_targets(torch.tensor([2]), 0.3), torch.tensor([[0.1, 0.1, 0.8]]))


def test_simulated_choices_follow_the_documented_probabilities() -> None:
    random, margin, temperature, difference = np.random.default_rng(0), 0.2, 0.5, 0.3
    choices = [choose(difference, temperature, margin, random) for _ in range(20000)]
    expected = log_probabilities(torch.tensor(difference / temperature), torch.tensor(margin / temperature)).exp()
    for name, probability in zip(("a", "b", "tie"), expected, strict=True):
        assert choices.count(name) / 20000 == pytest.approx(float(probability), abs=0.012)


def test_temperature_is_found_again_and_calibrates() -> None:
    random = np.random.default_rng(1)
    logit = random.normal(0, 2, 20000)
    wins = (random.random(20000) < 1 / (1 + np.exp(-logit))).astype(float)
    assert fit_temperature(3 * logit, wins) == pytest.approx(3, rel=0.06)
    assert expected_calibration_error(1 / (1 + np.exp(-logit)), wins) < 0.02
    assert expected_calibration_error(1 / (1 + np.exp(-3 * logit)), wins) > 0.05
    assert fit_temperature(np.array([5.0, 5.0]), np.array([0.0, 1.0])) < 6  # two pairs do not drive it to the bound


def test_reliability_counts_both_sides_as_one() -> None:
    rows = reliability(np.array([0.9, 0.1, 0.9, 0.1]), np.array([1, 0, 1, 1]), bins=5)
    assert rows == [{"count": 4.0, "stated": pytest.approx(0.9), "observed": 0.75}]


def test_perfect_restoration_is_the_best_in_every_quality() -> None:
    hq = images(1, 3, 32, 32).float()
    blurred = torch.nn.functional.avg_pool2d(hq, 3, stride=1, padding=1, count_include_pad=False)
    noisy = (hq + 0.1 * torch.randn(hq.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    measured = qualities(torch.cat([hq, blurred, noisy]), hq.expand(3, -1, -1, -1))
    assert set(measured) == {"psnr", "structure", "edges", "sharpness", "colour", "texture", "low_band"}
    for values in measured.values():
        assert values[0] > values[1:].max()


def test_gradients_of_a_ramp_are_its_slope() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 10
    torch.testing.assert_close(gradient_magnitude(ramp), torch.full((1, 6, 6), 0.2))


def test_utilities_have_unit_spread_within_groups_and_ignore_group_levels() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    quality = random.normal(size=200)
    shifted = quality + 100 * groups
    first, second = (
        utilities({"psnr": q}, {"psnr": w}, groups).reshape(50, 4) for q, w in ((quality, 2), (shifted, 5))
    )
    assert pooled_std(first.ravel(), groups) == pytest.approx(1)
    centred = [total - total.mean(axis=1, keepdims=True) for total in (first, second)]
    np.testing.assert_allclose(centred[0], centred[1], atol=1e-9)


def test_pairs_are_distinct_within_groups_and_spread_evenly() -> None:
    groups = ["x"] * 4 + ["y"] * 3 + ["z"]
    showings = draw_pairs(groups, 6, seed=3)
    assert all(groups[pair.a] == groups[pair.b] and pair.a != pair.b for pair in showings)
    assert [groups[pair.a] for pair in showings] == ["x", "y"] * 3
    everything = draw_pairs(groups, 100, seed=3)
    assert len({frozenset((pair.a, pair.b)) for pair in everything}) == len(everything) == 9
    assert everything[:6] == showings
    assert {pair.a < pair.b for pair in draw_pairs(["x"] * 9, 36, seed=0)} == {True, False}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing_is_recovered_from_how_far_noisy_judges_agree(smoothing: float) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200_000)
    votes = [np.where(random.random(len(truth)) < smoothing, random.integers(0, 3, len(truth)), truth) for _ in "ab"]
    share = float((votes[0] == votes[1]).mean())
    assert smoothing_from_agreement(share, len(truth)) == pytest.approx(smoothing, abs=0.01)


def test_few_couples_or_none_give_the_usual_smoothing() -> None:
    assert smoothing_from_agreement(float("nan"), 0) == smoothing_from_agreement(0.2, 3) == 0.05
    assert smoothing_from_agreement(0.1, 100) == 1.0


def test_agreement_counts_every_pair_once_and_only_where_the_metric_tells() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0])
    metrics = {"same": logits / 7, "other": -logits, "half": np.array([1.0, 0.0, 1.0, np.nan])}
    showings = [(0, 1), (1, 0), (1, 2), (0, 2), (2, 3)]  # the first pair was shown twice
    first, second = np.array(showings).T
    rows = agreement(logits, metrics, Comparisons(first, second, np.zeros(5, np.int64)))
    assert {name: (row["accuracy"], row["pairs"]) for name, row in rows.items()} == {
        "same": (1.0, 4),
        "other": (0.0, 4),
        "half": (0.5, 2),
    }
