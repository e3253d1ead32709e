"""Putting faces back into photographs, and leaving some alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data

from prefrestore.faces.alignment import crop, ffhq_square
from prefrestore.faces.paste import mask, match_colours, paste
from prefrestore.faces.triage import reason_to_leave, turn

SIZE = 128
EDGE = 20
"""Pixels at the photograph's edge, where a crop blurs what lies outside and a little of what lies inside."""


def square(left: float, top: float, side: float, angle: float = 0.0) -> np.ndarray:
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * side
    turned = corners @ np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return turned + (left + side / 2, top + side / 2)


def landmarks(nose: float = 0.0) -> np.ndarray:
    """Eyes 40 px apart, mouth below, the nose's tip so many pixels off the middle."""
    points = np.zeros((68, 2), np.float32)
    points[36:42], points[42:48] = (80, 100), (120, 100)
    points[30] = (100 + nose, 120)
    points[48], points[54] = (88, 145), (112, 145)
    return points


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize("corner", [(60, 40), (-50, 300)])
def test_a_crop_put_back_changes_nothing_but_by_resampling(dtype: type, angle: float, corner: tuple[int, int]) -> None:
    photograph = cv2.GaussianBlur(np.ascontiguousarray(data.astronaut()), (0, 0), 3)
    full = np.iinfo(dtype).max // 255
    deep = photograph.astype(dtype) * dtype(full)
    where = square(*corner, 200, angle)
    result = paste(deep, crop(photograph, where, SIZE), where)
    assert result.dtype == dtype
    away = np.abs(result.astype(float) - deep)[EDGE:-EDGE, EDGE:-EDGE]
    assert away.mean() < 0.3 * full
    assert away.max() < 12 * full


def test_pixels_outside_the_square_are_the_same_to_the_bit() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    result = paste(photograph, np.full((SIZE, SIZE, 3), 200, np.uint8), square(100, 50, 150))
    changed = (result != photograph).any(2)
    assert changed[90:160, 140:210].mean() > 0.9
    changed[50:200, 100:250] = False
    assert not changed.any()
    assert (result[125, 175] == 200).all()


def test_a_square_outside_the_photograph_changes_nothing() -> None:
    photograph = data.astronaut()
    result = paste(photograph, np.zeros((SIZE, SIZE, 3), np.uint8), square(900, 900, 100))
    np.testing.assert_array_equal(result, photograph)


def test_the_rim_is_smooth() -> None:
    """On a flat photograph another flat face shows no step larger than the feather makes."""
    photograph = np.full((300, 300, 3), 100, np.uint8)
    result = paste(photograph, np.full((SIZE, SIZE, 3), 160, np.uint8), square(50, 50, 200)).astype(int)
    assert max(np.abs(np.diff(result, axis=axis)).max() for axis in (0, 1)) <= 4


def test_a_finer_face_is_made_smaller_without_aliasing() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    result = paste(np.full((200, 200, 3), 128, np.uint8), stripes, square(50, 50, 100))
    assert np.abs(result[90:110, 90:110].astype(int) - 128).max() <= 8


def test_mask_is_whole_in_the_middle_and_nothing_at_the_rim() -> None:
    assert mask(np.array([0.0, 0.5]), np.array([0.0, 0.5])).tolist() == [1.0, 1.0]
    assert mask(np.array([1.0, -1.0, 0.9]), np.array([0.0, 1.0, 0.9])).tolist() == [0.0, 0.0, 0.0]


def test_coarse_colours_are_the_photographs_and_details_the_restorations() -> None:
    before = crop(data.astronaut(), square(170, 60, 128), SIZE)
    fine = np.random.default_rng(0).integers(-20, 21, before.shape)
    shifted = np.clip(before.astype(int) + fine + (30, -20, 10), 0, 255).astype(np.uint8)
    matched = match_colours(shifted, before)
    assert np.abs((matched - before).mean((0, 1))).max() < 1.5
    assert np.abs(matched - before).mean() > 5


def test_faces_that_are_left_alone() -> None:
    image = np.full((400, 400, 3), 128, np.uint8)
    soft, where = landmarks(), ffhq_square(landmarks())
    assert reason_to_leave(image, where, soft, SIZE) is None
    noisy = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    assert reason_to_leave(noisy, where, soft, SIZE) == "sharp already"
    assert reason_to_leave(noisy, where, soft, 2 * SIZE) is None  # the model sees finer than the photograph
    assert reason_to_leave(image, ffhq_square(soft / 6), soft / 6, SIZE) == "too small (27 px)"
    assert reason_to_leave(image, where, landmarks(nose=25), SIZE) == "turned too far to the side"


def test_turn_does_not_depend_on_size_or_rotation() -> None:
    points = landmarks(nose=10)
    rotated = points @ np.array([(0.6, 0.8), (-0.8, 0.6)])
    assert turn(points) == pytest.approx(0.25)
    assert turn(rotated * 7) == pytest.approx(0.25, rel=1e-4)
