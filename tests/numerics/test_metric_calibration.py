"""The metrics against closed forms and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from skimage.data import astronaut
from skimage.filters import gaussian
from skimage.metrics import structural_similarity

from prefrestore.evaluation import metrics
from prefrestore.evaluation.uncertainty import sample_entropy, sample_spread, spread_map
from prefrestore.rewards import structure


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return astronaut()[:256, 100:356]


@pytest.fixture(scope="module")
def blurred(photograph: np.ndarray) -> np.ndarray:
    return np.rint(gaussian(photograph, 2, channel_axis=2, preserve_range=True)).astype(np.uint8)


def test_psnr_of_a_constant_error_is_closed_form() -> None:
    hq = np.full((32, 32, 3), 100, np.uint8)
    assert metrics.psnr(hq + 5, hq) == pytest.approx(20 * np.log10(255 / 5))
    assert metrics.psnr(hq, hq) == float("inf")


def test_psnr_sees_a_shift_of_brightness(photograph: np.ndarray) -> None:
    """No mean correction: a protocol with it would call this shift perfect."""
    shifted = (photograph.astype(int) // 2 + 60).astype(np.uint8)
    assert metrics.psnr(shifted, photograph) < 20


def test_ssim_terms_agree_with_scikit_image(photograph: np.ndarray, blurred: np.ndarray) -> None:
    ours, _ = metrics._ssim_terms(blurred.astype(float), photograph.astype(float))
    theirs = [
        structural_similarity(
            photograph[..., k], blurred[..., k], data_range=255, gaussian_weights=True, use_sample_covariance=False
        )
        for k in range(3)
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert metrics.ssim(blurred, photograph) == pytest.approx(np.mean(theirs), abs=1e-6)


def test_ms_ssim_agrees_with_the_rewards_implementation(photograph: np.ndarray, blurred: np.ndarray) -> None:
    """Written apart, in torch; it pools channels before the product, so grey images must agree."""
    first, second = (np.repeat(image[..., :1], 3, axis=2) for image in (blurred, photograph))
    pair = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255 for image in (first, second)]
    assert metrics.ms_ssim(first, second) == pytest.approx(float(structure.ms_ssim(*pair)), abs=1e-6)
    assert metrics.ms_ssim(second, second) == pytest.approx(1)


@pytest.mark.parametrize(("frequency", "is_high"), [(3, False), (15, False), (17, True), (31, True)])
def test_high_band_is_what_lies_above_half_the_nyquist_frequency(frequency: int, is_high: bool) -> None:
    coefficients = np.zeros((32, 32))
    coefficients[frequency, 0] = 8.0
    grey = idctn(coefficients, norm="ortho")
    image = np.repeat(grey[..., None], 3, axis=2) * 255
    energy = metrics.high_band_energy(image)
    assert energy == pytest.approx(64 / 32**2 if is_high else 0.0, abs=1e-12)


def test_sharpness_is_one_for_hq_and_falls_with_blur(photograph: np.ndarray, blurred: np.ndarray) -> None:
    energy = metrics.high_band_energy(photograph)
    assert metrics.sharpness(photograph, energy) == 1
    assert metrics.sharpness(blurred, energy) < 0.05
    assert np.isnan(metrics.sharpness(blurred, 0.0))


def test_spread_is_the_standard_deviation_over_seeds() -> None:
    samples = np.zeros((2, 5, 4, 4, 3), np.uint8)
    samples[1] = 51  # 0.2 apart: standard deviation 0.2 / sqrt(2)
    np.testing.assert_allclose(sample_spread(samples), 0.2 / np.sqrt(2))
    assert spread_map(samples).shape == (5, 4, 4)
    assert np.isnan(sample_spread(samples[:1])).all()


def test_entropy_of_gaussian_samples_is_the_closed_form() -> None:
    values = np.random.default_rng(0).normal(128, 20, (200, 1, 16, 16, 3)).round().astype(np.uint8)
    expected = 0.5 * np.log(2 * np.pi * np.e * (20 / 255) ** 2)
    assert sample_entropy(values)[0] == pytest.approx(expected, abs=0.01)


def test_entropy_of_equal_samples_is_that_of_rounding() -> None:
    same = np.full((3, 1, 8, 8, 3), 7, np.uint8)
    assert sample_entropy(same)[0] == pytest.approx(0.5 * np.log(2 * np.pi * np.e / 12 / 255**2))
