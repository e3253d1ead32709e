"""Rewards that look with dlib: what they score, when they cannot judge, and that HQ is looked at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data

from prefrestore.data.pairs import to_tensor
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.rewards.base import References
from prefrestore.rewards.faces import FaceReader, IdentityReward, LandmarksReward

SIZE = 64


@pytest.fixture(scope="module")
def face() -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's face [64, 64, 3] and its landmarks [68, 2]."""
    image = np.ascontiguousarray(data.astronaut()[0:220, 120:340])
    shape = shape_predictor()(image, face_detector()(image, 1)[0])
    scale = SIZE / 220
    points = np.array([(p.x, p.y) for p in shape.parts()], np.float32)
    small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return small, (points + 0.5) * scale - 0.5


def references(face: tuple[np.ndarray, np.ndarray], count: int) -> References:
    image, points = face
    hq = to_tensor(np.stack([image] * count))
    return References(hq, hq, [""] * count, np.stack([points] * count), ["astronaut"] * count)


def test_equal_pictures_score_one_and_worse_ones_less(face: tuple[np.ndarray, np.ndarray]) -> None:
    blurred = [cv2.GaussianBlur(face[0], (0, 0), sigma) for sigma in (1.0, 3.0)]
    restored = to_tensor(np.stack([face[0], *blurred]))
    reader = FaceReader(1)
    for reward in (IdentityReward(reader), LandmarksReward(reader)):
        scores = reward.score(restored, references(face, 3))
        assert float(scores[0]) == pytest.approx(1.0, abs=1e-6)
        assert scores[1] > scores[2] > 0


def test_hq_is_looked_at_once_and_both_rewards_share_a_look(face: tuple[np.ndarray, np.ndarray]) -> None:
    reader = FaceReader(1)
    identity, landmarks = IdentityReward(reader), LandmarksReward(reader)
    restored = to_tensor(np.stack([face[0], face[0][:, ::-1]]))
    first = identity.score(restored, references(face, 2))
    landmarks.score(restored, references(face, 2))
    assert reader.analysed == 1 + 2  # one HQ face, two restored ones
    identity.score(restored.flip(0), references(face, 2))
    assert reader.analysed == 1 + 2 + 2
    assert first[0] > first[1]


def test_without_hq_or_geometry_the_score_is_nan(face: tuple[np.ndarray, np.ndarray]) -> None:
    known = references(face, 2)
    unknown = References(known.lq, known.hq, known.texts, np.full((2, 68, 2), np.nan, np.float32), known.ids)
    half = References(known.lq, known.hq, known.texts, np.stack([face[1], np.full((68, 2), np.nan)]), known.ids)
    reader = FaceReader(1)
    for reward in (IdentityReward(reader), LandmarksReward(reader)):
        for blind in (References(known.lq, None, known.texts, known.landmarks, known.ids), unknown):
            assert reward.score(known.lq, blind).isnan().all()
        assert reward.score(known.lq, half).isnan().tolist() == [False, True]
