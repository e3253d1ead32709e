"""Further views of a portrait to train on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from prefrestore.config import IngestConfig
from prefrestore.configfile import load_section
from prefrestore.data.images import decode_png
from prefrestore.data.pairs import portraits_of
from prefrestore.data.portraits import render
from prefrestore.data.tables import Face
from prefrestore.faces.alignment import frame
from prefrestore.faces.intake import Intake
from prefrestore.faces.views import MOST_MOVED, MOST_TURNED, SCALES, retoned, shaken

SIZE = 128


def _taken(repository: Path, folder: Path, **changes: object) -> list[Face]:
    config = load_section(repository / "presets" / "smoke.yaml", "ingest", IngestConfig)
    values = {"source": "folder", "uri": str(folder), "num_train": 0, "num_eval": 0, "image_size": SIZE, "workers": 1}
    return list(Intake(config.model_copy(update=values | changes)).faces())


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    for index in range(4):
        split = folder / ("val" if index == 3 else "train")
        split.mkdir(exist_ok=True)
        picture = render(index, 256, seed=0).image
        cv2.imwrite(str(split / f"{index}.png"), picture[..., ::-1])
    return folder


def test_views_join_the_training_faces_alone(repository: Path, portraits: Path) -> None:
    one, three = _taken(repository, portraits), _taken(repository, portraits, views=3)
    assert [face.id for face in three if face.split == "eval"] == [face.id for face in one if face.split == "eval"]
    first = one[0].id
    assert [face.id for face in three][:3] == [first, f"{first}-view1", f"{first}-view2"]
    by_id = {face.id: face for face in three}
    assert all(by_id[face.id] == face for face in one)  # the crop itself is among them, as it was
    assert len({face.sha256 for face in three}) == len(three)


def test_landmarks_go_with_the_view(repository: Path, portraits: Path) -> None:
    from prefrestore.faces.detection import find_faces, find_landmarks

    checked = 0
    for face in _taken(repository, portraits, views=3):
        if "-view" not in face.id or not face.landmarks:
            continue
        image = decode_png(face.image)
        boxes = find_faces(image)
        if boxes:
            found = find_landmarks(image, boxes[0])
            error = np.linalg.norm(found - np.reshape(face.landmarks, (68, 2)), axis=1).mean()
            assert error < 0.03 * SIZE
            checked += 1
    assert checked


def test_a_shaken_square_is_a_square_near_the_old_one() -> None:
    square = frame(100, 100)
    for seed in range(50):
        other = shaken(square, np.random.default_rng(seed))
        sides = np.roll(other, -1, axis=0) - other
        lengths = np.linalg.norm(sides, axis=1)
        assert np.allclose(lengths, lengths[0])
        assert abs(sides[0] @ sides[1]) < 1e-6
        assert SCALES[0] <= lengths[0] / 100 <= SCALES[1]
        assert abs(np.arctan2(sides[0, 1], sides[0, 0])) <= MOST_TURNED
        assert np.abs(other.mean(0) - square.mean(0)).max() <= 100 * MOST_MOVED


def test_other_light_keeps_black_white_and_the_order_of_levels() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changes = []
    for seed in range(20):
        other = retoned(ramp, np.random.default_rng(seed))[0].astype(int)
        assert (other[0] == 0).all()
        assert (other[255] == 255).all()
        assert (np.diff(other, axis=0) >= 0).all()
        changes.append(np.abs(other - ramp[0]).max())
    assert np.median(changes) > 5


def test_views_are_told_from_portraits_by_their_names() -> None:
    assert portraits_of(["a", "a-view1", "a-view12", "b-view1", "c-viewpoint"]) == [0, 3, 4]
