"""``prefrestore studio``: the page on which people compare restorations."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from collections.abc import Callable
from pathlib import Path

import click

from prefrestore.errors import UserError

FOLDER = click.Path(path_type=Path)
QUESTION = "Which restoration looks more like a good photograph of the person in the degraded picture?"


@click.command()
@click.option("--candidates", type=FOLDER, required=True, help="artifact of sample_candidates")
@click.option("--votes", required=True, help="vote store to write to: a folder, or s3://BUCKET/PREFIX")
@click.option("--reward", type=FOLDER, help="artifact of train_reward: pairs its members disagree on come first")
@click.option("--question", default=QUESTION, show_default=True, help="what is asked; it stands in every record")
@click.option(
    "--repeat-every", type=click.IntRange(min=0), default=10, show_default=True, help="hidden repeats; 0: none"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to serve on")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--login", type=FOLDER, help="file of lines NAME:PASSWORD, readable by its owner alone")
def command(  # noqa: PLR0913 (the options)
    candidates: Path,
    votes: str,
    reward: Path | None,
    question: str,
    repeat_every: int,
    host: str,
    port: int,
    login: Path | None,
) -> None:
    """Serve the vote page: two restorations over the degraded image, left, right, tie or both bad.

    A vote is in the store before the next pair appears; stop with Ctrl-C and start again at any time.
    """
    check = None if login is None else read_login(login)
    if check is None and not _is_loopback(host):
        raise UserError(f"{host}: others can reach this address: give --login FILE, or stay on 127.0.0.1")
    from prefrestore.serving.ballot import Ballot
    from prefrestore.serving.deck import load_deck

    deck = load_deck(candidates, reward)
    try:
        from prefrestore.serving.vote_page import Place, build_page, serve
    except ModuleNotFoundError as error:
        raise UserError(f"studio: {error.name} is not installed: pip install 'prefrestore[studio]'") from None
    page = build_page(Ballot(votes, deck, question, repeat_every), question, check is not None)
    address = serve(page, Place(host, port, check))
    click.echo(f"{len(deck)} pairs, votes go to {votes}; open {address}")
    page.block_thread()


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
