"""The three dlib networks, loaded when first used and once per process.

Weights come with ``face-recognition-models`` (CC0). The 68-landmark model was trained on iBUG 300-W, whose licence
excludes commercial use; everything that needs it goes through this module, so that it can be exchanged.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import dlib


@cache
def face_detector() -> Any:
    """Return dlib's frontal HOG face detector; it needs faces of about 80 px or more."""
    return dlib.get_frontal_face_detector()


@cache
def shape_predictor() -> Any:
    """Return the predictor of 68 landmarks: ``predictor(rgb_uint8, rectangle)``."""
    return dlib.shape_predictor(_weights().pose_predictor_model_location())


@cache
def face_encoder() -> Any:
    """Return the ResNet that embeds a face in 128 numbers: ``encoder.compute_face_descriptor(...)``."""
    return dlib.face_recognition_model_v1(_weights().face_recognition_model_location())


@cache
def _weights() -> Any:
    with warnings.catch_warnings():  # the package asks pkg_resources for its folder, which warns of its own end
        warnings.simplefilter("ignore")
        import face_recognition_models
    return face_recognition_models
