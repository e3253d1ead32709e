"""The restore page: a photograph in, its faces chosen, before and after under one slider, the result to take away.

A photograph lies on disk from its upload until it was read, the pictures of a result until the next one, until the page
is closed, or for half an hour.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from markupsafe import Markup

from prefrestore.data.images import UnreadableError, encode_png
from prefrestore.data.photographs import SUFFIXES, Photograph, encode_photograph, read_photograph
from prefrestore.errors import UserError
from prefrestore.evaluation.calibration import Calibration
from prefrestore.evaluation.restorer import Drawing
from prefrestore.faces.alignment import crop
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.serving.photograph import Face, Restored, Wishes, find, number_of_samples, put_back, redraw

MAX_PIXELS = 25_000_000
"""Of a photograph: what a laptop holds for several people."""
PREVIEW = 1600
"""Longest side of what the page shows, pixels; what is taken away has the photograph's own size."""
FACE_VIEW = 512
"""Side at which one face is shown."""
WAITING = 16
"""Restorations that wait for their turn; more are refused."""
STATE_SECONDS = 1800
WHOLE, GUESSED = "Whole photograph", "Where it guessed"
GREEN, GREY = (60, 200, 90), (160, 160, 160)
CALM: Mapping[str, Any] = {"print_exception": False}
"""A visitor's mistake is told on the page, not as a traceback in the log."""


@dataclass(frozen=True)
class Opened:
    """A visitor's photograph.

    Attributes:
        photograph: as it was read.
        faces: those found in it.
        suffix: of the result's file name.
    """

    photograph: Photograph
    faces: tuple[Face, ...]
    suffix: str


@dataclass(frozen=True)
class Done:
    """A visitor's photograph and its restoration."""

    before: np.ndarray
    restored: Restored


def build_page(page: gr.Blocks, pipeline: PrefRestorePipeline, calibration: Calibration | None, folder: Path) -> None:
    """Put the restore page on ``page``, whose files lie in ``folder``."""
    desk = Desk(pipeline, calibration, folder)
    with page, gr.Column(elem_id="restore"):
        opened, done = (gr.State(None, time_to_live=STATE_SECONDS) for _ in range(2))
        with gr.Row():
            with gr.Column(scale=2):
                file = gr.File(label="Photograph: drop it here", elem_id="photograph", height=130)
                found = gr.HTML(elem_id="found")
                chosen = gr.CheckboxGroup([], label="Faces to restore", visible=False, elem_id="faces")
                text = gr.Textbox(
                    label="What is known of the person",
                    placeholder="a woman with glasses",
                    max_length=200,
                    elem_id="text",
                )
                fidelity = gr.Slider(
                    0, 1, 1, step=0.05, label="Fidelity: from sharp (0) to nearest to the truth (1)", elem_id="fidelity"
                )
                guessed = gr.Checkbox(label="Show where it guessed", elem_id="guessed")
                start = gr.Button("Restore", variant="primary", interactive=False, elem_id="start")
            with gr.Column(scale=3):
                slider = gr.ImageSlider(
                    label="Before and after", type="filepath", interactive=False, max_height=640, elem_id="slider"
                )
                view = gr.Radio([WHOLE], value=WHOLE, label="Show", visible=False, elem_id="view")
                told = gr.HTML(elem_id="told")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
        # one after another: a restoration uses all cores
        turn: Mapping[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "restore"}
        looked = [opened, done, found, chosen, start, slider, view, told, download]
        file.upload(desk.look, file, looked, preprocess=False, **turn)
        file.clear(desk.forget, None, looked, **turn)
        given = [opened, chosen, text, fidelity, guessed]
        start.click(desk.restore, given, [done, slider, view, told, download], **turn)
        view.input(desk.show, [done, view], slider, api_visibility="private", show_progress="hidden")
        page.unload(desk.leave)
    page.queue(max_size=WAITING, api_open=False)


class Desk:
    """What the page does."""

    def __init__(self, pipeline: PrefRestorePipeline, calibration: Calibration | None, folder: Path) -> None:
        self._pipeline, self._calibration, self._folder = pipeline, calibration, folder

    def look(self, upload: Mapping[str, Any], request: gr.Request) -> tuple[Any, ...]:
        """Read an upload, delete its file and find the faces."""
        path = Path(upload["path"])
        self._clear(request)
        try:
            data = path.read_bytes()
        except OSError:
            raise gr.Error("The upload is gone already: drop the photograph again.", **CALM) from None
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
        try:
            photograph = read_photograph(data, MAX_PIXELS)
        except UnreadableError as error:
            limit = f" (at most {MAX_PIXELS // 1_000_000} million)" if "too many" in str(error) else ""
            raise gr.Error(f"This photograph cannot be used: {error}{limit}.", **CALM) from None
        faces = find(photograph.rgb8(), self._pipeline.image_size)
        suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"
        return _looked(Opened(photograph, faces, suffix))

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the photograph and its restoration."""
        self._clear(request)
        return _looked(None)

    def restore(  # noqa: PLR0913  the page's controls
        self,
        opened: Opened | None,
        chosen: Sequence[int],
        text: str,
        fidelity: float,
        guessed: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio finds it by its default
    ) -> tuple[Any, ...]:
        """Restore the chosen faces; return the restoration, the slider, its views, a word and the download."""
        if opened is None:
            raise gr.Error("The photograph was forgotten after half an hour: drop it again.", **CALM)
        if not chosen:
            raise gr.Error("No face is chosen: tick at least one.", **CALM)
        number = number_of_samples(None, fidelity, uncertainty=guessed)
        wishes = Wishes(Drawing(number, None, 0, text.strip()), fidelity)
        before = opened.photograph.rgb8()
        faces = [
            replace(face, left_alone=None if index in chosen else "not chosen")
            for index, face in enumerate(opened.faces)
        ]
        try:
            drawn = [
                redraw(self._pipeline, before, face, wishes, self._calibration)
                for face in progress.tqdm(faces, desc="Restoring", unit="faces")
            ]
        except UserError as error:
            raise gr.Error(f"{error}", **CALM) from None
        done = Done(before, put_back(opened.photograph, drawn, wishes))
        self._clear(request)
        target = self._place(request) / f"restored{opened.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_photograph(done.restored.photograph, opened.suffix))
        views = [WHOLE, *([GUESSED] if guessed else []), *(_face_name(index) for index in sorted(chosen))]
        first = GUESSED if guessed else WHOLE
        return (
            done,
            self.show(done, first, request),
            gr.update(choices=views, value=first, visible=True),
            _told(drawn, self._calibration is not None, guessed),
            gr.update(value=str(target), interactive=True),
        )

    def show(self, done: Done | None, view: str, request: gr.Request) -> tuple[str, str] | None:
        """Return the files of before and after in a view."""
        if done is None:
            return None
        folder = self._place(request)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, picture in zip(("before", "after"), _pair(done, view), strict=True):
            paths.append(folder / f"{hashlib.sha256(view.encode()).hexdigest()[:8]}-{name}.png")
            paths[-1].write_bytes(encode_png(picture))
        return str(paths[0]), str(paths[1])

    def leave(self, request: gr.Request) -> None:
        """Delete a visitor's files when the page is closed."""
        self._clear(request)

    def _place(self, request: gr.Request) -> Path:
        """Return the folder of a visitor; the browser chooses the session's name, so it is no part of the path."""
        return self._folder / f"session-{hashlib.sha256(str(request.session_hash).encode()).hexdigest()}"

    def _clear(self, request: gr.Request) -> None:
        shutil.rmtree(self._place(request), ignore_errors=True)


def _looked(opened: Opened | None) -> tuple[Any, ...]:
    """Return what the page shows of a photograph, before anything is restored."""
    faces = opened.faces if opened else ()
    choices = [(_choice(index, face), index) for index, face in enumerate(faces)]
    chosen = [index for index, face in enumerate(faces) if face.left_alone is None]
    return (
        opened,
        None,
        _found(opened) if opened else "",
        gr.update(choices=choices, value=chosen, visible=bool(faces)),
        gr.update(interactive=bool(faces)),
        None,
        gr.update(choices=[WHOLE], value=WHOLE, visible=False),
        "",
        gr.update(value=None, interactive=False),
    )


def _choice(index: int, face: Face) -> str:
    return f"{index + 1} ({face.left_alone})" if face.left_alone else f"{index + 1}"


def _face_name(index: int) -> str:
    return f"Face {index + 1}"


def _found(opened: Opened) -> str:
    """Return the photograph with its faces numbered, as a picture that is in no file."""
    picture, scale = _preview(opened.photograph.rgb8())
    picture, thick = picture.copy(), max(2, max(picture.shape) // 300)
    for index, face in enumerate(opened.faces):
        corners = np.rint(face.square * scale).astype(np.int32)
        colour = GREY if face.left_alone else GREEN
        cv2.polylines(picture, [corners], isClosed=True, color=colour, thickness=thick, lineType=cv2.LINE_AA)
        left, top = (int(value) for value in np.clip(corners.min(0), 0, None))
        place = (left + 6 * thick, top + 18 * thick)
        cv2.putText(picture, f"{index + 1}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thick, colour, thick, cv2.LINE_AA)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    image = Markup('<img alt="The photograph, its faces numbered" src="data:image/jpeg;base64,{}">')
    words = "" if opened.faces else Markup("<p>No face was found: nothing would be restored.</p>")
    return str(image.format(base64.b64encode(jpeg).decode()) + words)


def _told(faces: Sequence[Face], calibrated: bool, guessed: bool) -> str:
    number = sum(face.restored is not None for face in faces)
    words = f"{number} {'face' if number == 1 else 'faces'} restored; everything else is as it was."
    if guessed:
        words += " Red: the error to expect." if calibrated else " Red: where the samples disagree."
    return words


def _pair(done: Done, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Return before and after of a view, [H, W, 3] uint8, of one size."""
    after = done.restored.photograph.rgb8()
    if view == GUESSED and done.restored.uncertainty is not None:
        after = done.restored.uncertainty
    for index, face in enumerate(done.restored.faces):
        if view == _face_name(index):
            return crop(done.before, face.square, FACE_VIEW), crop(after, face.square, FACE_VIEW)
    return _preview(done.before)[0], _preview(after)[0]


def _preview(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a picture of at most ``PREVIEW`` a side, and its scale."""
    scale = min(1.0, PREVIEW / max(picture.shape[:2]))
    if scale == 1:
        return picture, scale
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)), scale
