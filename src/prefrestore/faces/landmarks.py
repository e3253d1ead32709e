"""Where eyes, brows, nose, mouth and chin are: dlib's 68 points, predicted inside the HQ face's box."""

from __future__ import annotations

import numpy as np

from prefrestore.faces.dlib_models import shape_predictor
from prefrestore.faces.geometry import Frame, face_box, interocular, rescale_points


def predict_landmarks(frame: Frame) -> np.ndarray:
    """Return 68 points [68, 2] float32 in pixels of the image the frame was made from."""
    shape = shape_predictor()(frame.image, face_box(frame.landmarks))
    points = np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64)
    return rescale_points(points, 1 / frame.scale).astype(np.float32)


def landmark_distance(restored: np.ndarray, hq: np.ndarray) -> np.ndarray:
    """Return the mean distance of points [N, 68, 2] to those of the HQ face, per cent of its interocular distance.

    The unit is the 300-W challenge's (inter-ocular normalised error) and does not depend on the image's size; on an
    FFHQ-aligned 512 px face 1 % is about 1.3 px. NaN where either is unknown.
    """
    distances = np.linalg.norm(restored.astype(np.float64) - hq.astype(np.float64), axis=-1).mean(-1)
    return 100.0 * distances / np.array([interocular(points.astype(np.float64)) for points in hq])
