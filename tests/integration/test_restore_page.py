"""The restore page in headless Chromium: what it gives is what the program gives, and nothing stays on disk."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data

from prefrestore.commands import restore as restore_command
from prefrestore.serving.site import MAX_UPLOAD, private_folder, sweep
from support.restorers import small_model
from support.studio import small_candidates, studio

pytestmark = pytest.mark.xdist_group("restore_page")  # one server

SECONDS = 40.0


@pytest.fixture(scope="module")
def model(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(repository, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's process makes temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(model: Path, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("studio") / "log"
    with studio("--model", model, log=log, TMPDIR=str(temporary)) as address:
        yield address
    assert not list(temporary.glob("prefrestore-studio-*"))  # gone when the server was stopped
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of one public-domain photograph side by side: a soft face and a sharp one."""
    sharp = np.ascontiguousarray(data.astronaut()[:320, 80:400])
    path = tmp_path_factory.mktemp("photograph") / "two.png"
    Image.fromarray(np.hstack([cv2.GaussianBlur(sharp, (0, 0), 4), sharp])).save(path)
    return path


@pytest.fixture
def page(address: str, chromium: Any) -> Iterator[Any]:
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    yield page
    context.close()


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def drop(page: Any, path: Path) -> None:
    page.set_input_files("#photograph input[type=file]", path)


def faces_found(page: Any) -> None:
    """Wait until both faces of the photograph are shown and can be chosen; Gradio draws one after the other."""
    page.wait_for_selector("#found img")
    page.wait_for_function("() => document.querySelectorAll('#faces input').length === 2")


def restored(page: Any) -> None:
    page.click("#start")
    page.wait_for_selector("#told:has-text('restored')")


def shown(page: Any) -> list[str]:
    """Return the addresses of the slider's two pictures."""
    page.wait_for_function("() => document.querySelectorAll('#slider img').length >= 2")
    return page.eval_on_selector_all("#slider img", "all => all.map(one => one.src)")


def test_the_result_is_the_programs_and_leaves_nothing_behind(
    page: Any, address: str, model: Path, temporary: Path, photograph: Path, tmp_path: Path
) -> None:
    drop(page, photograph)
    faces_found(page)
    assert "two.png" not in files_in(temporary)  # read, then deleted
    labels = page.locator("#faces label").all_inner_texts()
    assert sorted(label.strip() for label in labels) in (["1", "2 (sharp already)"], ["1 (sharp already)", "2"])
    assert page.locator("#faces input:checked").count() == 1
    page.fill("#text textarea, #text input", "a woman")
    page.check("#guessed input")
    restored(page)
    assert "Red: where the samples disagree" in page.inner_text("#told")
    before, after = shown(page)
    assert before != after
    views = [label.strip() for label in page.locator("#view label").all_inner_texts()]
    assert views[:2] == ["Whole photograph", "Where it guessed"]
    assert len(views) == 3
    page.click(f"#view label:has-text('{views[2]}')")
    page.wait_for_function(
        "old => !Array.from(document.querySelectorAll('#slider img')).some(i => i.src === old)", arg=after
    )
    assert len(page.screenshot(path=tmp_path / "page.png")) > 20_000
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "page.restored.png")
    options = ["--model", model, "--text", "a woman", "--fidelity", "1", "--uncertainty"]
    command = [photograph, "-o", tmp_path / "program.png", *options]
    done = CliRunner().invoke(restore_command.command, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.restored.png").read_bytes() == (tmp_path / "program.png").read_bytes()
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert files_in(temporary)
    page.context.close()
    wait_until(lambda: not files_in(temporary))


def test_other_faces_can_be_chosen_and_another_photograph_replaces_the_first(
    page: Any, temporary: Path, photograph: Path
) -> None:
    drop(page, photograph)
    faces_found(page)
    for box in page.locator("#faces input").all():
        box.check()
    restored(page)
    assert "2 faces restored" in page.inner_text("#told")
    for box in page.locator("#faces input").all():
        box.uncheck()
    page.click("#start")
    page.wait_for_selector("text=No face is chosen")
    page.click("#photograph button[aria-label*=lear], #photograph button[aria-label*=emove]")
    page.wait_for_function("() => !document.querySelector('#found img')")
    wait_until(lambda: not files_in(temporary))
    assert page.locator("#start").is_disabled()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 10 000 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def animated() -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:])
    return target.getvalue()


def test_hostile_files_are_told_and_the_page_goes_on(
    page: Any, temporary: Path, photograph: Path, tmp_path: Path
) -> None:
    hostile = [
        ("text.jpg", b"no picture", "not an image of a known format"),
        ("cut.png", photograph.read_bytes()[:2000], "damaged"),
        ("bomb.png", bomb(), "too many pixels (at most 25 million)"),
        ("moving.gif", animated(), "several frames"),
        ("..%2f..%2fescape.png", b"", "not an image of a known format"),
        ("huge.png", bytes(MAX_UPLOAD + 1), "maximum allowed size"),
    ]
    for name, content, reason in hostile:
        (tmp_path / name).write_bytes(content)
        drop(page, tmp_path / name)
        page.wait_for_selector(f"text=/{reason.replace('(', '.').replace(')', '.')}/i")
        page.reload()
    wait_until(lambda: not files_in(temporary))
    drop(page, photograph)
    page.wait_for_selector("#found img")


def test_it_lies_beside_the_vote_page(model: Path, chromium: Any, tmp_path: Path) -> None:
    candidates = tmp_path / "candidates"
    candidates.mkdir()
    options = ("--candidates", small_candidates(candidates), "--votes", tmp_path / "votes", "--model", model)
    with studio(*options, log=tmp_path / "log") as address:
        page = chromium.new_context().new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.goto(address)
        page.wait_for_selector("#pseudonym")
        assert page.locator("#photograph").count() == 0
        page.goto(f"{address}restore")
        page.wait_for_selector("#photograph")
        assert page.locator("#pseudonym").count() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--votes", "votes"], "the vote page needs both"),
        (["--host", "0.0.0.0"], "others can reach this address"),
    ],
)
def test_bad_options_are_one_line(program: Any, tmp_path: Path, options: list[str], reason: str) -> None:
    found = program("studio", *options, cwd=tmp_path)
    assert found.returncode == 2
    assert reason in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_no_table_of_past_presses_is_made_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with private_folder(), gr.Blocks() as page:
        page.queue()
    assert page._queue.ANALYTICS_MAX_EVENTS == 1


def test_files_of_pages_that_were_never_closed_are_swept_away(tmp_path: Path) -> None:
    for name, age in (("old", 100), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").write_bytes(b"")
        os.utime(tmp_path / name / "picture.png", (time.time() - age,) * 2)
    sweep(tmp_path, 50)
    assert [path.parent.name for path in tmp_path.rglob("*.png")] == ["new"]
