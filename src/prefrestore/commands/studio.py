"""``prefrestore studio``: pages on which people restore photographs and compare restorations."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from gradio import Blocks

FOLDER = click.Path(path_type=Path)
QUESTION = "Which restoration looks more like a good photograph of the person in the degraded picture?"


@click.command()
@click.option("--candidates", type=FOLDER, help="artifact of sample_candidates: serve the vote page")
@click.option("--votes", help="vote store to write to: a folder, or s3://BUCKET/PREFIX")
@click.option("--reward", type=FOLDER, help="artifact of train_reward: pairs its members disagree on come first")
@click.option("--question", default=QUESTION, show_default=True, help="what is asked; it stands in every record")
@click.option(
    "--repeat-every", type=click.IntRange(min=0), default=10, show_default=True, help="hidden repeats; 0: none"
)
@click.option("--model", help="serve the restore page with this model; by default the weights that ship")
@click.option("--registry", default="sqlite:///mlflow.db", show_default=True, help="of the model's address")
@click.option("--device", default="cpu", show_default=True, help="such as cuda")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to serve on")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--login", type=FOLDER, help="file of lines NAME:PASSWORD, readable by its owner alone")
def command(  # noqa: PLR0913 (the options)
    candidates: Path | None,
    votes: str | None,
    reward: Path | None,
    question: str,
    repeat_every: int,
    model: str | None,
    registry: str,
    device: str,
    host: str,
    port: int,
    login: Path | None,
) -> None:
    """Serve the restore page; with --candidates the vote page, and the restore page at /restore if a --model is named.

    On the restore page photographs are restored and nothing is kept. On the vote page two restorations are compared; a
    vote is in the store before the next pair appears. Stop with Ctrl-C and start again at any time.
    """
    check = None if login is None else read_login(login)
    if check is None and not _is_loopback(host):
        raise UserError(f"{host}: others can reach this address: give --login FILE, or stay on 127.0.0.1")
    if (candidates is None) != (votes is None) or (candidates is None and reward is not None):
        raise UserError("--candidates, --votes: the vote page needs both; without them the restore page is served")
    try:
        import gradio as gr

        from prefrestore.serving.site import Place, private_folder, serve
    except ModuleNotFoundError as error:
        raise UserError(f"studio: {error.name} is not installed: pip install 'prefrestore[studio]'") from None
    with private_folder() as folder:
        page, told = gr.Blocks(title="Pref-Restore studio", analytics_enabled=False), []
        if candidates is not None and votes is not None:
            voting = Voting(candidates, votes, reward, question, repeat_every)
            told.append(_add_votes(page, voting, login=check is not None))
        restores = candidates is None or model is not None
        if restores:
            told.append(_add_restoring(page, model, registry, device, folder))
        address = serve(page, Place(host, port, check), photographs=restores)
        click.echo(f"{'; '.join(told)}; open {address}")
        page.block_thread()


@dataclass(frozen=True)
class Voting:
    """What the vote page asks about, and where answers go."""

    candidates: Path
    votes: str
    reward: Path | None
    question: str
    repeat_every: int


def _add_votes(page: Blocks, voting: Voting, *, login: bool) -> str:
    """Put the vote page at the root; return a word about it."""
    from prefrestore.serving.ballot import Ballot
    from prefrestore.serving.deck import load_deck
    from prefrestore.serving.vote_page import build_page

    deck = load_deck(voting.candidates, voting.reward)
    build_page(page, Ballot(voting.votes, deck, voting.question, voting.repeat_every), voting.question, login)
    return f"{len(deck)} pairs, votes go to {voting.votes}"


def _add_restoring(page: Blocks, model: str | None, registry: str, device: str, folder: Path) -> str:
    """Put the restore page at the root, or beside what is there; return a word about it."""
    from prefrestore.evaluation.restorer import load_calibration
    from prefrestore.registry.loader import load, locate, resolve
    from prefrestore.registry.shipped import shipped_address
    from prefrestore.serving.photograph import usable
    from prefrestore.serving.restore_page import build_page

    located = locate(resolve(model or shipped_address(), registry))
    pipeline = load(located).to(usable(device))
    beside = bool(page.blocks)
    build_page(
        page.route("Restore", "restore", False) if beside else page, pipeline, load_calibration(located.folder), folder
    )
    return f"photographs are restored at {'/restore' if beside else '/'} with {located.address}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_login(file: Path) -> Callable[[str, str], bool]:
    """Return a check of names and passwords.

    Raises:
        UserError: no such file, others may read it, or a line is not NAME:PASSWORD.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file: write lines NAME:PASSWORD into it")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file}: others may read it: chmod 600 {file}")
    known: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, colon, password = line.strip().partition(":")
        if line.strip() and not (name and colon and password):
            raise UserError(f"{file}: line {number} is not NAME:PASSWORD")
        if name:
            known[name] = password
    if not known:
        raise UserError(f"{file}: names nobody: write lines NAME:PASSWORD into it")

    def check(name: str, password: str) -> bool:
        return hmac.compare_digest(known.get(name, "").encode(), password.encode()) and name in known

    return check
