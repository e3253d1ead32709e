"""The fast path of blur and resampling against the plain one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import Blur, Motion, Resize, Sinc
from prefrestore.data.resampling import INTERPOLATION, TOLERANCE, correlate_resize, separate, trim

KINDS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """High contrast at all scales: the hardest case."""
    random = np.random.default_rng(seed)
    coarse = cv2.resize(random.integers(0, 2, (6, 6, 3)).astype(np.uint8) * 255, (width, height))
    specks = random.integers(0, 2, (height, width, 3)) * 255
    return np.where(random.random((height, width, 1)) < 0.3, specks, coarse).astype(np.uint8)


def plain(image: np.ndarray, kernel: np.ndarray, target: Resize) -> np.ndarray:
    blurred = cv2.filter2D(image.astype(np.float32), -1, kernel.astype(np.float32))
    return cv2.resize(blurred, (target.width, target.height), interpolation=INTERPOLATION[target.mode])


blurs = st.builds(
    Blur,
    kernel=st.sampled_from(KINDS),
    size=st.sampled_from([3, 7, 21, 41]),
    sigma_x=st.floats(0.2, 15),
    sigma_y=st.floats(0.2, 15),
    rotation=st.floats(-3.14, 3.14),
    beta=st.floats(0.5, 4),
)
others = st.one_of(
    st.builds(Sinc, size=st.sampled_from([7, 21]), cutoff=st.floats(0.7, 3.1)),
    st.builds(Motion, size=st.just(41), length=st.floats(2, 40), rotation=st.floats(-3.14, 3.14)),
)


@settings(max_examples=80)
@given(
    operation=st.one_of(blurs, others),
    height=st.integers(16, 140),
    width=st.integers(16, 140),
    share=st.floats(0.03, 1.4),
    mode=st.sampled_from(["area", "bilinear", "bicubic"]),
    seed=st.integers(0, 99),
)
def test_same_picture_as_dense_kernel_and_resize(
    operation: Blur, height: int, width: int, share: float, mode: str, seed: int
) -> None:
    target = Resize(height=max(1, int(height * share)), width=max(1, int(width * share)), mode=mode)  # type: ignore[arg-type]
    image, kernel = picture(height, width, seed), kernel_of(operation)
    fast, slow = correlate_resize(image, kernel, target), plain(image, kernel, target)
    overshoot = 1.6 if mode == "bicubic" else 1  # negative weights add to the bound
    assert np.abs(fast - slow).max() <= 255 * TOLERANCE * overshoot + 0.02


@given(operation=st.one_of(blurs, others))
def test_factors_sum_to_the_kernel_within_the_bound(operation: Blur) -> None:
    kernel = kernel_of(operation)
    columns, rows = separate(kernel, 1e-3)
    remainder = kernel - columns.T @ rows
    worst_pictures = remainder > 0, remainder < 0  # white where the remainder is of one sign, black elsewhere
    assert max(abs((remainder * white).sum()) for white in worst_pictures) <= 1e-3
    kept = trim(kernel, 1e-3)
    cut = (len(kernel) - len(kept)) // 2
    assert np.abs(kernel).sum() - np.abs(kept).sum() <= 1e-3
    np.testing.assert_array_equal(kept, kernel[cut : len(kernel) - cut, cut : len(kernel) - cut])


def test_isotropic_gaussian_has_rank_one() -> None:
    operation = Blur(kernel="iso", size=41, sigma_x=9, sigma_y=9, rotation=0, beta=1)
    assert len(separate(kernel_of(operation))[0]) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    operation = Blur(kernel="aniso", size=41, sigma_x=9, sigma_y=3, rotation=0.5, beta=1)
    arguments = picture(256, 256, 0), kernel_of(operation), Resize(height=60, width=60, mode="bilinear")
    once = correlate_resize(*arguments)
    with threadpool_limits(threads):
        np.testing.assert_array_equal(once, correlate_resize(*arguments))
