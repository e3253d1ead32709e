"""Restoring the faces of a whole photograph; the rest stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from prefrestore.data.batch import write_whole
from prefrestore.data.photographs import Photograph, check_suffix, encode_photograph
from prefrestore.errors import UserError
from prefrestore.evaluation.calibration import Calibration
from prefrestore.evaluation.restorer import Drawing, Drawn, draw, uncertainty_picture
from prefrestore.faces.alignment import crop, ffhq_square, frame
from prefrestore.faces.detection import find_faces, find_landmarks
from prefrestore.faces.paste import match_colours, paste
from prefrestore.faces.triage import reason_to_leave
from prefrestore.models.pipeline import PrefRestorePipeline

SAMPLES = 8
"""Drawn of each face where their mean or their spread is asked for."""


@dataclass(frozen=True)
class Wishes:
    """What is wanted of a restoration.

    Attributes:
        drawing: samples of each face, steps, seed and text.
        fidelity: 0 is one sample, sharp; 1 the mean of all, nearest to the truth on average. None is the model's own
            restoration.
        scale: the photograph's size is multiplied with, at least 1.
        aligned: the photograph is one aligned face; nothing is looked for.
        every_face: restores faces too that would be left alone.
    """

    drawing: Drawing
    fidelity: float | None = None
    scale: float = 1.0
    aligned: bool = False
    every_face: bool = False


@dataclass(frozen=True)
class Face:
    """A face found in a photograph.

    Attributes:
        square: its corners in the photograph as it was given, [4, 2].
        left_alone: why it was not restored; None: it was.
        restored: the restored face [S, S, 3] uint8; None: it was left alone.
        uncertain: the restored face in grey, red where the model guessed; None where one sample was drawn.
    """

    square: np.ndarray
    left_alone: str | None
    restored: np.ndarray | None = None
    uncertain: np.ndarray | None = None


@dataclass(frozen=True)
class Restored:
    """A photograph with its faces restored.

    Attributes:
        photograph: the whole.
        faces: those found, largest first.
        uncertainty: the whole in grey [H, W, 3] uint8, red where the model guessed; None where one sample was drawn.
    """

    photograph: Photograph
    faces: tuple[Face, ...]
    uncertainty: np.ndarray | None

    @property
    def image(self) -> Image.Image:
        """The whole as a picture of 8 bits a channel."""
        return self.photograph.picture()

    def save(self, path: str | Path) -> None:
        """Write the whole as PNG, JPEG, WebP or TIFF, with what the photograph carried.

        Raises:
            UserError: the name ends in none of them.
        """
        check_suffix(Path(path))
        write_whole(Path(path), encode_photograph(self.photograph, Path(path).suffix))


def number_of_samples(asked: int | None, fidelity: float | None, *, uncertainty: bool) -> int:
    """Return how many samples of each face are compared; ``asked`` None: as many as are needed.

    Raises:
        UserError: one sample cannot give what is wanted, or nothing is wanted of several.
    """
    if fidelity is None and not uncertainty:
        if asked and asked > 1:
            raise UserError(f"--samples {asked}: nothing compares them: add --uncertainty or --fidelity")
        return 0
    several = bool(fidelity) or uncertainty
    number = asked or (SAMPLES if several else 1)
    if several and number == 1:
        raise UserError("--samples 1: --fidelity and --uncertainty compare samples: ask for at least two")
    return number


def usable(device: str) -> str:
    """Return a device of torch that can be used here.

    Raises:
        UserError: it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {device}: cannot be used here ({reason:.100}): say cpu, or cuda where there is a GPU"
        ) from None
    return device


def restore_photograph(
    pipeline: PrefRestorePipeline, photograph: Photograph, wishes: Wishes, calibration: Calibration | None = None
) -> Restored:
    """Find the faces of a photograph, restore each and put it back; equal input gives equal pixels.

    Raises:
        UnreadableError: it is said to be an aligned face but is not square.
    """
    if wishes.aligned:
        return _restore_aligned(pipeline, photograph, wishes, calibration)
    seen = photograph.rgb8()
    found = find(seen, pipeline.image_size, every_face=wishes.every_face)
    return put_back(photograph, [redraw(pipeline, seen, face, wishes, calibration) for face in found], wishes)


def find(seen: np.ndarray, size: int, *, every_face: bool = False) -> tuple[Face, ...]:
    """Return the faces of a picture [H, W, 3] uint8, largest first, none restored yet.

    Args:
        seen: the picture.
        size: side at which the model restores.
        every_face: none is left alone.
    """
    faces = []
    for box in find_faces(seen):
        landmarks = find_landmarks(seen, box)
        square = ffhq_square(landmarks)
        faces.append(Face(square, None if every_face else reason_to_leave(seen, square, landmarks, size)))
    return tuple(faces)


def redraw(
    pipeline: PrefRestorePipeline, seen: np.ndarray, face: Face, wishes: Wishes, calibration: Calibration | None = None
) -> Face:
    """Restore one face that :func:`find` found; one that is left alone is returned as it is."""
    if face.left_alone is not None:
        return face
    drawn = draw(pipeline, crop(seen, face.square, pipeline.image_size), wishes.drawing)
    return _restored(face.square, drawn, wishes, calibration)


def put_back(photograph: Photograph, faces: Sequence[Face], wishes: Wishes) -> Restored:
    """Return a photograph with the restored ones of its faces, largest first, in their places."""
    seen, whole = photograph.rgb8(), enlarge(photograph, wishes.scale)
    pixels, uncertainty = whole.pixels, grey_of(whole.rgb8()) if wishes.drawing.samples > 1 else None
    for face in reversed(faces):  # the largest last: it lies in front
        if face.restored is None:
            continue
        place = (face.square + 0.5) * wishes.scale - 0.5
        matched = match_colours(face.restored, crop(seen, face.square, len(face.restored)))
        pixels = paste(pixels, grey_of(matched) if whole.grey else matched, place)
        if uncertainty is not None and face.uncertain is not None:
            uncertainty = paste(uncertainty, face.uncertain, place)
    return Restored(replace(whole, pixels=pixels), tuple(faces), uncertainty)


def _restore_aligned(
    pipeline: PrefRestorePipeline, photograph: Photograph, wishes: Wishes, calibration: Calibration | None
) -> Restored:
    """Restore the one face that a picture is; it gets the model's size."""
    seen = photograph.rgb8()
    face = _restored(frame(*seen.shape[:2]), draw(pipeline, seen, wishes.drawing), wishes, calibration)
    assert face.restored is not None
    pixels = grey_of(face.restored) if photograph.grey else face.restored
    return Restored(replace(photograph, pixels=pixels, alpha=None), (face,), face.uncertain)


def enlarge(photograph: Photograph, scale: float) -> Photograph:
    """Return a photograph resampled (Lanczos) to ``scale`` times its size."""
    if scale == 1:
        return photograph

    def larger(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(values, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4))

    alpha = None if photograph.alpha is None else larger(photograph.alpha)
    return replace(photograph, pixels=larger(photograph.pixels), alpha=alpha)


def grey_of(face: np.ndarray) -> np.ndarray:
    """Return a face [S, S, 3] without colours, of the same shape and type."""
    return np.repeat(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def _restored(square: np.ndarray, drawn: Drawn, wishes: Wishes, calibration: Calibration | None) -> Face:
    shown = drawn.restoration if wishes.fidelity is None else between(drawn.samples, wishes.fidelity)
    uncertain = uncertainty_picture(shown, drawn.samples, calibration) if len(drawn.samples) > 1 else None
    return Face(square, None, shown, uncertain)


def between(samples: np.ndarray, fidelity: float) -> np.ndarray:
    """Return the picture between the first of the samples [S, H, W, 3] and their mean, uint8.

    The mean of all samples is nearest to the truth on average, one sample looks most natural. The best pictures between
    such ends lie on lines (Freirich et al. 2021, arXiv 2107.02555); that their natural end is a plain sample, as here,
    is an approximation.
    """
    mixed = (1 - fidelity) * samples[0] + fidelity * samples.mean(0)
    return np.asarray(np.rint(mixed), np.uint8)
