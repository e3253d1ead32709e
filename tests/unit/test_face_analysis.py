"""dlib on scikit-image's portrait: geometry from HQ, identity and landmarks that react to what matters."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from prefrestore.faces import geometry
from prefrestore.faces.analysis import FaceAnalyser, FaceAnalysis
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.faces.identity import identity_angle, identity_similarity, verification_rank
from prefrestore.faces.landmarks import landmark_distance


@pytest.fixture(scope="module")
def portrait() -> tuple[np.ndarray, np.ndarray]:
    """A face of 64 px and its landmarks, found at full size."""
    image = np.ascontiguousarray(astronaut()[0:256, 96:352])
    box = face_detector()(image, 1)[0]
    points = np.array([(p.x, p.y) for p in shape_predictor()(image, box).parts()], np.float32)
    return cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA), geometry.rescale_points(points, 0.25)


@pytest.fixture(scope="module")
def analysed(portrait: tuple[np.ndarray, np.ndarray]) -> FaceAnalysis:
    """The face itself, blurred, shifted by 3 px, mirrored, and with unknown geometry."""
    image, points = portrait
    images = [image, cv2.GaussianBlur(image, (0, 0), 2), np.roll(image, 3, axis=1), image[:, ::-1], image]
    landmarks = [points, points, points, points, np.full_like(points, np.nan)]
    with FaceAnalyser(1) as analyse:
        return analyse(np.stack(images), np.stack(landmarks))


def test_predicted_landmarks_lie_where_the_full_size_picture_has_them(
    portrait: tuple[np.ndarray, np.ndarray], analysed: FaceAnalysis
) -> None:
    assert landmark_distance(analysed.landmarks[:1], portrait[1][None])[0] < 4  # per cent of the eyes' distance


def test_a_shift_moves_the_landmarks_by_its_length(analysed: FaceAnalysis) -> None:
    moved = (analysed.landmarks[2] - analysed.landmarks[0]).mean(0)
    assert moved == pytest.approx([3, 0], abs=0.8)
    eyes = geometry.interocular(analysed.landmarks[0])
    distance = landmark_distance(analysed.landmarks[2:3], analysed.landmarks[:1])[0]
    assert distance == pytest.approx(100 * 3 / eyes, rel=0.35)


def test_identity_falls_with_blur(analysed: FaceAnalysis) -> None:
    itself, blurred = identity_similarity(analysed.embeddings[:2], analysed.embeddings[:1])
    assert itself == 1.0
    assert 0.1 < blurred < 0.9


def test_unknown_geometry_is_nan_never_zero(analysed: FaceAnalysis) -> None:
    assert np.isnan(analysed.embeddings[4]).all()
    assert np.isnan(analysed.landmarks[4]).all()
    assert np.isnan(identity_similarity(analysed.embeddings[4], analysed.embeddings[0]))
    assert np.isnan(landmark_distance(analysed.landmarks[4:], analysed.landmarks[:1])).all()


def test_a_pool_gives_the_same_numbers(portrait: tuple[np.ndarray, np.ndarray], analysed: FaceAnalysis) -> None:
    image, points = portrait
    with FaceAnalyser(2) as analyse:
        pooled = analyse(np.stack([image] * 3), np.stack([points] * 3))
    np.testing.assert_array_equal(pooled.embeddings, np.repeat(analysed.embeddings[:1], 3, axis=0))
    np.testing.assert_array_equal(pooled.landmarks, np.repeat(analysed.landmarks[:1], 3, axis=0))


def test_similarity_is_a_half_at_dlibs_threshold() -> None:
    first, second = np.zeros(128), np.zeros(128)
    second[0] = 0.6
    assert identity_similarity(first, second) == pytest.approx(0.5)


def test_angle_of_orthogonal_embeddings() -> None:
    basis = np.eye(128)
    np.testing.assert_allclose(identity_angle(basis[[0, 0]], basis[[1, 0]]), [90, 0])


def test_rank_counts_those_at_least_as_near() -> None:
    gallery = np.zeros((4, 128))
    gallery[:, 0] = [0, 1, 2, np.nan]
    probes = np.zeros((4, 128))
    probes[:, 0] = [0.1, 0.2, 2.5, 0]
    np.testing.assert_array_equal(verification_rank(probes, gallery), [1, 2, 1, np.nan])
    np.testing.assert_array_equal(verification_rank(np.zeros((2, 128)), np.zeros((2, 128))), [2, 2])


def test_points_follow_the_pixels_of_a_resized_image() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[2, 5] = 255
    frame = geometry.to_frame(image, np.tile(np.array([5.0, 2.0]), (68, 1)))
    brightest = np.unravel_index(frame.image[..., 0].argmax(), frame.image.shape[:2])
    assert np.abs(np.array(brightest)[::-1] - frame.landmarks[0]).max() <= 0.5


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 3), np.uint8)])
def test_wrong_input_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        FaceAnalyser(1)(images, np.zeros((1, 68, 2)))
