"""The metrics against closed forms and independent implementations."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.fft import idctn
from skimage.data import astronaut
from skimage.filters import gaussian
from skimage.metrics import structural_similarity

from prefrestore.evaluation import metrics
from prefrestore.evaluation.calibration import fit_calibration
from prefrestore.evaluation.distributions import frechet_distance, kernel_distance, set_distance
from prefrestore.evaluation.niqe import fit_asymmetric, fit_natural_model, niqe
from prefrestore.evaluation.uncertainty import (
    identity_spread,
    latent_entropy,
    sample_entropy,
    sample_spread,
    spread_map,
)
from prefrestore.faces.analysis import analyse_one
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.faces.identity import identity_angle, identity_similarity
from prefrestore.faces.landmarks import landmark_distance
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


RECORDED = {
    "psnr": (25.345394, 1e-4),
    "ssim": (0.796939, 1e-4),
    "ms_ssim": (0.954262, 1e-4),
    "sharpness": (0.000588246, 1e-5),
    "identity_similarity": (0.75274, 0.002),
    "identity_angle": (15.2524, 0.1),
    "landmark_distance": (1.43691, 0.02),
}
"""A photograph blurred by a Gaussian of 2 px, as of 2026-11; the tolerances allow for other processors."""


def test_recorded_values(photograph: np.ndarray) -> None:
    """A library that changes its mind shows here, and a change of ours that was not meant."""
    hq = np.ascontiguousarray(photograph)
    blurred = cv2.GaussianBlur(hq, (0, 0), 2)
    shape = shape_predictor()(hq, face_detector()(hq, 1)[0])
    points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
    (embedding, seen), (hq_embedding, hq_seen) = (analyse_one(image, points) for image in (blurred, hq))
    found = {
        "psnr": metrics.psnr(blurred, hq),
        "ssim": metrics.ssim(blurred, hq),
        "ms_ssim": metrics.ms_ssim(blurred, hq),
        "sharpness": metrics.sharpness(blurred, metrics.high_band_energy(hq)),
        "identity_similarity": float(identity_similarity(embedding, hq_embedding)),
        "identity_angle": float(identity_angle(embedding, hq_embedding)),
        "landmark_distance": float(landmark_distance(seen[None], hq_seen[None])[0]),
    }
    assert found == {name: pytest.approx(value, abs=tolerance) for name, (value, tolerance) in RECORDED.items()}


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


def test_entropy_of_latents_is_the_closed_form() -> None:
    deviations = np.linspace(0.1, 2, 4 * 3 * 3).reshape(1, 4, 3, 3)
    latents = np.random.default_rng(0).normal(size=(4000, 1, 4, 3, 3)) * deviations
    expected = 0.5 * np.log(2 * np.pi * np.e * deviations**2).mean()
    assert latent_entropy(latents)[0] == pytest.approx(expected, abs=0.01)
    assert latent_entropy(np.ones((2, 1, 4, 3, 3)))[0] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 1e-6))
    assert np.isnan(latent_entropy(latents[:1])).all()


def test_identity_spread_is_the_mean_distance_over_pairs() -> None:
    embeddings = np.zeros((3, 2, 128))
    embeddings[1, 0, 0], embeddings[2, 0, 1] = 3, 4  # distances 3, 4, 5; the second face is alike in all
    np.testing.assert_allclose(identity_spread(embeddings), [4, 0])
    assert np.isnan(identity_spread(embeddings[:1])).all()


def test_frechet_distance_of_diagonal_gaussians_is_closed_form() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, (200_000, 3))
    second = rng.normal([1, 0, 0], [1, 2, 3], (200_000, 3))
    assert frechet_distance(first, second) == pytest.approx(1 + 0 + 1 + 4, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    rng = np.random.default_rng(0)
    equal = [kernel_distance(*rng.normal(0, 1, (2, 20, 8))) for _ in range(400)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / 20
    shifted = [kernel_distance(rng.normal(0.5, 1, (20, 8)), rng.normal(0, 1, (20, 8))) for _ in range(50)]
    assert np.mean(shifted) > 5 * np.std(equal) / 20


def test_set_distance_leaves_unknown_faces_out() -> None:
    hq = np.random.default_rng(0).normal(0, 1, (10, 4)).astype(np.float32)
    samples = np.stack([hq, hq])
    samples[1, 3] = np.nan
    found = set_distance(samples, hq)
    assert (found.n, found.missing) == (9, 1)
    assert found.frechet_distance == pytest.approx(0, abs=1e-6)
    assert np.isnan(set_distance(np.full_like(samples, np.nan), hq).kernel_distance)


@pytest.mark.parametrize(("draw", "shape"), [("normal", 2.0), ("laplace", 1.0)])
def test_fitted_shape_of_known_distributions(draw: str, shape: float) -> None:
    """An asymmetric density is continuous at zero, so that a side has mass in proportion to its width."""
    rng = np.random.default_rng(0)
    size = np.abs(getattr(rng, draw)(0, 1, (1, 600, 600)))
    values = np.where(rng.random(size.shape) < 0.75, 3 * size, -size)
    found, left, right = fit_asymmetric(values)
    assert found[0] == pytest.approx(shape, rel=0.02)
    assert right[0] / left[0] == pytest.approx(3, rel=0.02)


def test_a_flat_patch_has_the_largest_shape() -> None:
    found, left, right = fit_asymmetric(np.zeros((1, 8, 8)))
    assert (found[0], left[0], right[0]) == (pytest.approx(10), 0.0, 0.0)


def test_niqe_prefers_sharp_pictures(photograph: np.ndarray, blurred: np.ndarray) -> None:
    sharp = [photograph, photograph[:, ::-1], photograph[::-1]]
    model = fit_natural_model(np.stack(sharp))
    noisy = np.clip(photograph + np.random.default_rng(0).normal(0, 25, photograph.shape), 0, 255).astype(np.uint8)
    own = niqe(photograph, model)
    assert own < niqe(blurred, model)
    assert own < niqe(noisy, model)


def test_calibration_of_a_linear_relation_is_that_line() -> None:
    spread = np.random.default_rng(0).uniform(0, 1, (4, 64, 64))
    error = 0.5 * spread + np.random.default_rng(1).normal(0, 0.05, spread.shape)
    fitted = fit_calibration(spread, error)
    inside = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(fitted(inside), 0.5 * inside, atol=0.02)
