"""The studio's server: where pages are served, and the folder in which Gradio keeps files while it runs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.queueing import Queue
from gradio.route_utils import API_PREFIX
from starlette.middleware import Middleware

from prefrestore.errors import UserError
from prefrestore.serving.limits import Answering, BodyLimit, Closed, Presses

MAX_UPLOAD = 30_000_000
"""Bytes of a photograph."""
BODY_BYTES = 1 << 16
"""Of a request where no photograph is taken."""
CLOSED = (
    *("process_recording", "proxy", "stream", "vibe-", "undo-vibe-", "component_server", "custom_component"),
    *("run-history", "run/", "api/", "call/"),
)
"""Of gradio's API: nothing is recorded, streamed, fetched from elsewhere or called but by the pages here."""
MAX_SESSIONS = 64
"""Whose photographs are held in memory; the oldest goes first."""
MAX_UNREAD = 1024
"""Messages to pages that wait to be read; a page that is open reads each at once."""
KEEP_SECONDS = 1800.0
"""After which a file of a page that was never closed is deleted."""


@dataclass(frozen=True)
class Place:
    """Where the pages are served, and who may enter; no ``login``: whoever reaches them."""

    host: str
    port: int
    login: Callable[[str, str], bool] | None


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give Gradio a folder of its own, readable by this user alone, that is gone when the block ends or is stopped.

    Build pages within the block: components remember the folder.
    """

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory(prefix="prefrestore-studio-", ignore_cleanup_errors=True) as name:
        os.environ["GRADIO_TEMP_DIR"] = name
        # of the last ten thousand presses Gradio makes a table after each press: most of the time a press takes
        os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
        signal.signal(signal.SIGTERM, stop)
        threading.Thread(target=_sweep_for_ever, args=(Path(name),), name="sweep", daemon=True).start()
        yield Path(name)


def _sweep_for_ever(folder: Path) -> None:
    while folder.is_dir():
        sweep(folder, KEEP_SECONDS)
        time.sleep(KEEP_SECONDS / 30)


def sweep(folder: Path, seconds: float) -> None:
    """Delete the files in a folder that nobody touched for so long."""
    before = time.time() - seconds
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
        except FileNotFoundError:
            continue  # a page deleted it first


def drop_unread(queue: Queue, most: int = MAX_UNREAD) -> None:
    """Forget what pages asked for and never read, of the longest known first, until no more than ``most`` wait.

    Gradio keeps it for as long as the server runs: who presses and goes away would fill its memory.
    """
    unread = {name: waiting for name, waiting in queue.pending_messages_per_session.items() if waiting.qsize()}
    surplus = sum(waiting.qsize() for waiting in unread.values()) - most
    for name, waiting in unread.items():
        if surplus <= 0:
            break
        surplus -= waiting.qsize()
        while not waiting.empty():
            waiting.get_nowait()
        queue.pending_event_ids_session.pop(name, None)


def serve(page: gr.Blocks, place: Place, *, photographs: bool) -> str:
    """Serve the pages from threads of this process and return their address.

    Without ``photographs`` nothing can be uploaded, and requests are small.

    Raises:
        UserError: the port is taken.
    """
    assets = files("prefrestore.serving")
    script = assets.joinpath("vote_page.js").read_text("utf-8")
    css = "".join(assets.joinpath(f"{name}_page.css").read_text("utf-8") for name in ("vote", "restore"))
    # fonts of the visitor's machine, none from the network
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    closed = tuple(f"{API_PREFIX}/{name}" for name in (*CLOSED, *(() if photographs else ("upload",))))
    limit = MAX_UPLOAD + BODY_BYTES if photographs else BODY_BYTES
    inputs = {number: len(button.inputs) for number, button in page.fns.items()}
    layers = [
        Middleware(Closed, prefixes=closed),
        Middleware(BodyLimit, limit=limit),
        Middleware(Presses, path=f"{API_PREFIX}/queue/join", inputs=inputs, before=partial(drop_unread, page._queue)),
        Middleware(Answering),
    ]
    try:
        _, address, _ = page.launch(
            app_kwargs={"middleware": layers},
            server_name=place.host,
            server_port=place.port,
            auth=place.login,
            share=False,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            prevent_thread_lock=True,
            theme=theme,
            css=css,
            head=f"<script>{script}</script>",
            max_file_size=MAX_UPLOAD,
            state_session_capacity=MAX_SESSIONS,
        )
    except OSError as error:
        raise UserError(f"{place.host}:{place.port}: cannot be served ({error}): choose another --port") from None
    return str(address)
