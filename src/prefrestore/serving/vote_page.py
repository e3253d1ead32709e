"""The vote page: two restorations side by side over the degraded image, decided by keys or buttons.

The page holds nothing that tells where a picture comes from: no names, no seeds, and a token that is new every time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup

from prefrestore.errors import UserError
from prefrestore.serving.ballot import Asked, Ballot

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
LABELS = {"a": "Left is better", "b": "Right is better", "tie": "No difference", "both_bad": "Both are bad"}
CALM: Mapping[str, Any] = {"print_exception": False}
"""An annotator's mistake or a full disk is told on the page, not as a traceback in the log."""

WAITING = 256
"""Presses that may wait; more are answered 503."""

READ_TOKEN = "(name) => [name, document.querySelector('#board')?.dataset.token ?? '']"
"""Which showing a press belongs to is read from the page at that moment: a second press cannot hit the next pair."""


def build_page(page: gr.Blocks, ballot: Ballot, question: str, login: bool) -> None:
    """Put the vote page on ``page``; with ``login`` the annotator's name is that of the login."""
    with page:
        name, token = gr.State(""), gr.Textbox("", visible="hidden")
        gr.HTML(Markup('<div id="question">{}</div>').format(question))
        with gr.Column(visible=not login) as entrance:
            wanted = gr.Textbox(label="Your pseudonym", elem_id="pseudonym", max_lines=1, autofocus=True)
            start = gr.Button("Start", variant="primary", elem_id="start")
        with gr.Column(visible=login) as booth:
            progress, board = gr.HTML(), gr.HTML()
            with gr.Row(elem_id="choices"):
                presses = {choice: gr.Button(text, elem_id=f"vote-{choice}") for choice, text in LABELS.items()}
            with gr.Row(elem_id="extras"):
                undo = gr.Button("Undo", size="sm", elem_id="undo")
                gr.Button("Zoom", size="sm", elem_id="zoom")
        shown = [board, progress]
        entered = [name, entrance, booth, *shown]
        quiet: Mapping[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 16}
        actions = Booth(ballot)
        gr.on([start.click, wanted.submit], actions.enter, [wanted], entered, **quiet)
        if login:
            page.load(actions.enter_by_login, None, entered, **quiet)
        for choice, press in presses.items():
            press.click(actions.voting(choice), [name, token], shown, js=READ_TOKEN, **quiet)
        undo.click(actions.undo, [name], shown, **quiet)
    page.queue(max_size=WAITING, api_open=False)


class Booth:
    """What the page's buttons do; with a login the annotator is who logged in, whatever the browser says."""

    def __init__(self, ballot: Ballot) -> None:
        self._ballot = ballot

    def enter(self, wanted: str | None) -> tuple[Any, ...]:
        """Begin or go on under a pseudonym; return name, entrance, booth, board and progress."""
        name = str(wanted or "").strip()
        if not NAME.fullmatch(name) or name.startswith("simulated"):
            raise gr.Error("A pseudonym has 1 to 40 letters, digits, dots, dashes or underscores.", **CALM)
        _guarded(self._ballot.join, name)
        return name, gr.update(visible=False), gr.update(visible=True), *_show(self._ballot, name)

    def enter_by_login(self, request: gr.Request) -> tuple[Any, ...]:
        """Begin or go on as who logged in."""
        return self.enter(str(request.username))

    def voting(self, choice: str) -> Callable[..., tuple[str, str]]:
        """Return what the button of a choice does; it returns board and progress."""

        def vote(name: str, token: str | None, request: gr.Request) -> tuple[str, str]:
            who = _who(name, request)
            if not _guarded(self._ballot.vote, who, str(token or ""), choice):
                gr.Info("This pair was answered already; here is the next one.")
            return _show(self._ballot, who)

        return vote

    def undo(self, name: str, request: gr.Request) -> tuple[str, str]:
        """Take the last answer back; return board and progress."""
        who = _who(name, request)
        if not _guarded(self._ballot.undo, who):
            gr.Info("There is nothing to undo.")
        return _show(self._ballot, who)


def _who(name: str, request: gr.Request) -> str:
    """Return who votes; a browser that was told of no name, as after a restart of the server, must enter again."""
    who = request.username or name
    if not who:
        raise gr.Error("This page is no longer known: reload it and give your pseudonym again.", **CALM)
    return str(who)


def _guarded(action: Callable[..., Any], *arguments: str) -> Any:
    """Do what may fail for want of space or of a network, and tell the annotator so: nothing was kept then."""
    try:
        return action(*arguments)
    except (OSError, UserError) as error:
        raise gr.Error(f"The vote store cannot be used, nothing was kept: {error}", **CALM) from None


def _show(ballot: Ballot, name: str) -> tuple[str, str]:
    asked, progress = ballot.current(name), ballot.progress(name)
    share = progress.done / max(1, progress.done + progress.left)
    bar = Markup(
        '<div id="progress" data-done="{0}"><span>{0} judged</span>'
        '<span class="bar"><i style="width:{1:.1f}%"></i></span><span>{2} left</span></div>'
    ).format(progress.done, 100 * share, progress.left)
    return str(_board(asked)), str(bar)


def _board(asked: Asked | None) -> Markup:
    if asked is None:
        return Markup('<div id="finished">Every pair is judged. Thank you!</div>')
    figure = Markup(
        '<figure class="{}"><div class="frame"><img src="data:image/png;base64,{}" alt="{}" draggable="false"></div>'
        "<figcaption>{}</figcaption></figure>"
    )
    pictures = (
        ("restored", asked.left.png, "Left"),
        ("restored", asked.right.png, "Right"),
        ("lq", asked.pair.lq_png, "Degraded picture"),
    )
    body = Markup("").join(
        figure.format(kind, base64.b64encode(png).decode(), label, label) for kind, png, label in pictures
    )
    return Markup('<div id="board" data-token="{}">{}</div>').format(asked.token, body)
