"""Kernels, noise and JPEG against closed forms and other implementations."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from prefrestore.data.degradation import degrade
from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import (
    Blur,
    ColourJitter,
    ColourShift,
    DegradationRecord,
    GaussianNoise,
    Grey,
    Jpeg,
    Motion,
    Operation,
    PoissonNoise,
    Sinc,
)
from prefrestore.data.resampling import correlate

SIZE = 41


def blur(kernel: str, sigma_x: float, sigma_y: float, rotation: float = 0.0, beta: float = 1.0) -> Blur:
    return Blur(kernel=kernel, size=SIZE, sigma_x=sigma_x, sigma_y=sigma_y, rotation=rotation, beta=beta)  # type: ignore[arg-type]


def apply(image: np.ndarray, *operations: Operation, rounding: str = "nearest") -> np.ndarray:
    height, width = image.shape[:2]
    record = DegradationRecord(
        recipe="test",
        severity="any",
        height=height,
        width=width,
        operations=operations,
        rounding=rounding,  # type: ignore[arg-type]
    )
    return degrade(image, record)


ALL = [
    blur("iso", 3, 3),
    blur("aniso", 5, 2, 0.7),
    blur("generalized_iso", 3, 3, beta=0.7),
    blur("generalized_aniso", 5, 2, -1.2, beta=2.5),
    blur("plateau_iso", 3, 3, beta=1.5),
    blur("plateau_aniso", 5, 2, 2.0, beta=1.2),
    Sinc(size=21, cutoff=1.5),
    Motion(size=SIZE, length=17, rotation=0.4),
]


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: getattr(operation, "kernel", operation.op))
def test_impulse_gives_the_mirrored_kernel(operation: Blur | Sinc | Motion) -> None:
    kernel = kernel_of(operation)
    image = np.zeros((101, 101, 3), np.float32)
    image[50, 50] = 1
    response = correlate(image, kernel)
    reach = len(kernel) // 2
    expected = np.zeros((101, 101))
    expected[50 - reach : 51 + reach, 50 - reach : 51 + reach] = kernel[::-1, ::-1]
    assert kernel.sum() == pytest.approx(1)
    for channel in range(3):
        np.testing.assert_allclose(response[:, :, channel], expected, atol=1e-6)


@pytest.mark.parametrize("operation", ALL[:6], ids=lambda operation: operation.kernel)
def test_gaussian_family_is_its_formula(operation: Blur) -> None:
    """The shape as a function of x' inv(Sigma) x, with the matrix written out."""
    turn = np.array(
        [
            [math.cos(operation.rotation), -math.sin(operation.rotation)],
            [math.sin(operation.rotation), math.cos(operation.rotation)],
        ]
    )
    inverse = np.linalg.inv(turn @ np.diag([operation.sigma_x**2, operation.sigma_y**2]) @ turn.T)
    kernel = kernel_of(operation)
    for point in ((0, 0), (1, 0), (0, 4), (3, -5), (-20, 20), (7, 7)):
        distance = np.array(point) @ inverse @ np.array(point)
        plateau = operation.kernel.startswith("plateau")
        value = 1 / (1 + distance**operation.beta) if plateau else math.exp(-0.5 * distance**operation.beta)
        assert kernel[20 + point[1], 20 + point[0]] / kernel[20, 20] == pytest.approx(value)


def test_anisotropic_gaussian_has_its_covariance() -> None:
    rotation, sigma_x, sigma_y = 0.6, 4.0, 2.0
    kernel = kernel_of(blur("aniso", sigma_x, sigma_y, rotation))
    axis = np.arange(SIZE) - 20
    x, y = np.meshgrid(axis, axis)
    found = np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    turn = np.array([[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]])
    np.testing.assert_allclose(found, turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T, rtol=2e-3)


def test_sinc_passes_low_and_stops_high_frequencies() -> None:
    cutoff = 1.5
    response = np.abs(np.fft.fft2(kernel_of(Sinc(size=121, cutoff=cutoff)), (512, 512)))
    frequency = 2 * np.pi * np.fft.fftfreq(512)
    radius = np.hypot(frequency[:, None], frequency)
    assert response[radius < cutoff - 0.2].min() > 0.9
    assert response[radius > cutoff + 0.2].max() < 0.1


def test_motion_spreads_a_point_evenly_along_its_path() -> None:
    kernel = kernel_of(Motion(size=SIZE, length=20, rotation=0))
    assert kernel[:20].sum() == kernel[21:].sum() == 0
    np.testing.assert_allclose(kernel[20, 12:29], 1 / 20, rtol=0.02)
    diagonal = kernel_of(Motion(size=SIZE, length=20, rotation=math.pi / 4))
    np.testing.assert_allclose(diagonal, diagonal.T, atol=1e-12)


def test_gaussian_noise_has_its_standard_deviation() -> None:
    grey = np.full((400, 400, 3), 128, np.uint8)
    difference = apply(grey, GaussianNoise(sigma=10, grey=False, seed=1)).astype(float) - 128
    assert difference.std() == pytest.approx(math.hypot(10, 12**-0.5), rel=0.01)  # and rounding's 1/12
    assert abs(difference.mean()) < 0.1
    assert abs(np.corrcoef(difference[:, :, 0].ravel(), difference[:, :, 1].ravel())[0, 1]) < 0.02
    same = apply(grey, GaussianNoise(sigma=10, grey=True, seed=1))
    assert (same == same[:, :, :1]).all()


def test_poisson_noise_has_the_variance_of_counting() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (2000, 1, 3))
    noisy = apply(ramp, PoissonNoise(scale=1, grey=False, seed=2)).astype(float)
    for level in (40, 60, 190, 210):  # not near 128, where rounding narrows the spread
        variance = (noisy[:, level] / 255).var()
        assert variance == pytest.approx(level / 255 / 256, rel=0.06)  # counts of 256 levels


def test_poisson_noise_is_scaled_and_may_be_grey() -> None:
    ramp = np.tile(np.arange(30, 220, dtype=np.uint8)[None, :, None], (400, 1, 3))
    single, double = (
        apply(ramp, PoissonNoise(scale=scale, grey=False, seed=3)).astype(float) - ramp for scale in (1, 2)
    )
    assert double.std() == pytest.approx(2 * single.std(), rel=0.02)
    assert abs(np.corrcoef(single[:, :, 0].ravel(), single[:, :, 1].ravel())[0, 1]) < 0.02
    same = apply(ramp, PoissonNoise(scale=1, grey=True, seed=3)).astype(int) - ramp
    assert same.std() == pytest.approx(single.std(), rel=0.05)
    assert (same == same[:, :, :1]).all()


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_is_libjpegs(quality: int) -> None:
    random = np.random.default_rng(quality)
    image = cv2.resize(random.integers(0, 256, (16, 16, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=2)
    other = np.asarray(Image.open(stream))
    difference = np.abs(apply(image, Jpeg(quality=quality)).astype(int) - other)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_colours() -> None:
    random = np.random.default_rng(0)
    image = random.integers(40, 200, (8, 8, 3), dtype=np.uint8)
    shifted = apply(image, ColourShift(red=10, green=-5, blue=0)).astype(int) - image
    assert [set(shifted[:, :, channel].ravel()) for channel in range(3)] == [{10}, {-5}, {0}]
    grey = apply(image, Grey())
    assert np.abs(grey[:, :, 0].astype(int) - np.asarray(Image.fromarray(image).convert("L"))).max() <= 1
    neutral = ColourJitter(
        brightness=1, contrast=1, saturation=1, hue=0, order=("hue", "saturation", "contrast", "brightness")
    )
    assert np.abs(apply(image, neutral).astype(int) - image).max() <= 1
    turned = apply(np.full((4, 4, 3), (200, 50, 50), np.uint8), neutral.model_copy(update={"hue": 1 / 3}))
    np.testing.assert_array_equal(turned[0, 0], (50, 200, 50))  # a third of a turn: red to green
    pale = apply(image, neutral.model_copy(update={"saturation": 0.0}))
    assert np.abs(pale.astype(int) - grey).max() <= 1
    flat = apply(image, neutral.model_copy(update={"contrast": 0.0}))
    assert flat.std() == 0
    bright = apply(image, neutral.model_copy(update={"brightness": 1.2}))
    np.testing.assert_allclose(bright, np.minimum(image * 1.2, 255), atol=1.01)
