"""FFHQ alignment."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from prefrestore.data.images import decode
from prefrestore.faces.alignment import crop, crop_matrix, ffhq_square, frame, is_aligned, transform
from prefrestore.faces.detection import find_faces, find_landmarks


def landmarks_of(eyes: np.ndarray, mouth: np.ndarray) -> np.ndarray:
    """Landmarks whose eye centres and mouth corners are given, [2, 2] each; the rest does not matter."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = eyes
    points[48], points[54] = mouth
    return points


def test_square_is_the_published_construction() -> None:
    eyes, mouth = np.array([(100.0, 120), (160, 120)]), np.array([(110.0, 190), (150, 190)])
    square = ffhq_square(landmarks_of(eyes, mouth))
    # eye distance 60, eye to mouth 70: half side max(60 * 2, 70 * 1.8) = 126; centre 10 % of the way to the mouth
    np.testing.assert_allclose(square, [(4, 1), (256, 1), (256, 253), (4, 253)])


@pytest.mark.parametrize("angle", [-0.5, 0.3, 2.0])
def test_square_turns_and_scales_with_the_face(angle: float) -> None:
    eyes, mouth = np.array([(100.0, 120), (160, 124)]), np.array([(110.0, 190), (150, 188)])
    turn = 1.7 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    still = ffhq_square(landmarks_of(eyes, mouth))
    np.testing.assert_allclose(ffhq_square(landmarks_of(eyes @ turn.T, mouth @ turn.T)), still @ turn.T)


def test_matrix_takes_corners_to_corners() -> None:
    square = ffhq_square(landmarks_of(np.array([(80.0, 90), (140, 100)]), np.array([(85.0, 160), (125, 165)])))
    found = transform(crop_matrix(square, 64), square)
    np.testing.assert_allclose(found, frame(64, 64), atol=1e-4)


def test_the_whole_of_a_square_image_is_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop(image, frame(64, 64), 64), image)
    np.testing.assert_array_equal(
        crop(image, frame(64, 64), 32), cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    )


def test_a_turned_crop_shows_the_turned_picture() -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (96, 96))
    corners = np.roll(frame(96, 96), -1, axis=0)  # the first corner is the top right one: a quarter turn
    np.testing.assert_allclose(crop(image, corners, 96).astype(int), np.rot90(image), atol=1)


def test_outside_the_photograph_is_reflected_and_blurred_without_an_edge() -> None:
    image = cv2.resize(np.random.default_rng(1).integers(60, 200, (6, 6, 3), dtype=np.uint8), (100, 100))
    found = crop(image, frame(100, 100) - (40, 0), 100).astype(int)
    np.testing.assert_array_equal(found[:, 60:], image[:, 20:80].astype(int)[:, :40])
    steps = np.abs(np.diff(found.mean(2), axis=1)).mean(0)
    assert steps[35:45].max() < 3 * steps.mean() + 2


def test_aligned_means_nearly_the_whole_image() -> None:
    whole = frame(256, 256)
    assert is_aligned(whole + 5, 256, 256)
    assert not is_aligned(whole + 15, 256, 256)
    assert not is_aligned(frame(256, 300), 256, 300)


@pytest.mark.real_faces
def test_aligned_portraits_are_recognised_and_a_turned_one_is_put_upright(real_faces: Path) -> None:
    image = decode((real_faces / "val" / "0001.jpg").read_bytes())
    landmarks = find_landmarks(image, find_faces(image)[0])
    assert is_aligned(ffhq_square(landmarks), 256, 256)
    scene = np.full((700, 900, 3), 127, np.uint8)
    matrix = cv2.getRotationMatrix2D((127.5, 127.5), 15, 1.4)
    matrix[:, 2] += (250, 200)
    cv2.warpAffine(image, matrix, (900, 700), dst=scene, borderMode=cv2.BORDER_TRANSPARENT)
    square = ffhq_square(find_landmarks(scene, find_faces(scene)[0]))
    expected = frame(256, 256) @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(square - expected).max() < 0.06 * 1.4 * 256
