"""Finding faces and their 68 landmarks with dlib."""

from __future__ import annotations

from typing import Any

import cv2
import dlib
import numpy as np

from prefrestore.faces.dlib_models import face_detector, shape_predictor

DETECTION_SIDE = 1024  # larger images are made smaller first: the detector sees faces from about 80 px
SMALL_SIDE = 640  # images up to this are searched once more at twice the size


def find_faces(image: np.ndarray) -> list[np.ndarray]:
    """Return the boxes of the faces in an image, largest first: left, top, right, bottom in pixels, float32 [4].

    Args:
        image: 8-bit RGB [H, W, 3].
    """
    scale = min(1.0, DETECTION_SIDE / max(image.shape[:2]))
    small = image
    if scale < 1:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = face_detector()(small, 0)
    if not found and max(small.shape[:2]) <= SMALL_SIDE:
        found = face_detector()(small, 1)
    boxes = [np.array([box.left(), box.top(), box.right(), box.bottom()], np.float32) / scale for box in found]
    return sorted(boxes, key=lambda box: -float((box[2] - box[0]) * (box[3] - box[1])))


def find_landmarks(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return 68 landmarks of the face in a box: x, y in pixels, float32 [68, 2].

    Args:
        image: 8-bit RGB [H, W, 3].
        box: left, top, right, bottom in pixels.
    """
    shape: Any = shape_predictor()(image, dlib.rectangle(*(round(float(side)) for side in box)))
    return np.array([(point.x, point.y) for point in shape.parts()], np.float32)
