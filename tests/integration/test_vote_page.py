"""The vote page in headless Chromium: keys, undo, resume, several annotators, login; nothing leaves this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefrestore.data.preferences import Judgement
from prefrestore.data.vote_checks import consistency
from prefrestore.data.vote_store import read
from support.studio import small_candidates, studio

pytestmark = pytest.mark.xdist_group("vote_page")  # one store, one server

KEYS = ("ArrowLeft", "ArrowRight", "ArrowDown", "x")
CHOICES = {"ArrowLeft": "a", "ArrowRight": "b", "ArrowDown": "tie", "x": "both_bad"}


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_candidates(tmp_path_factory.mktemp("candidates"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "votes"


@pytest.fixture(scope="module")
def address(candidates: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("studio") / "log"
    with studio("--candidates", candidates, "--votes", store, log=log) as address:
        yield address


def votes_of(store: Path, name: str) -> list[Judgement]:
    """Return an annotator's standing votes, oldest first."""
    return sorted((row for row in read(store).judgements if row.annotator == name), key=lambda row: row.time)


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Any:
    return chromium


def enter(browser: Any, address: str, name: str) -> tuple[Any, list[str]]:
    """Open the page as an annotator; return it and the addresses it asks for."""
    page, asked = browser.new_context().new_page(), []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.fill("#pseudonym input, #pseudonym textarea", name)
    page.click("#start")
    page.wait_for_selector("#board")
    return page, asked


def press(page: Any, key: str) -> None:
    """Press a key and wait for another showing, or for the end."""
    token = page.get_attribute("#board", "data-token")
    page.keyboard.press(key)
    page.wait_for_function("old => document.querySelector('#board')?.dataset.token !== old", arg=token)


def done(page: Any) -> int:
    return int(page.get_attribute("#progress", "data-done"))


def test_twenty_votes_by_keys_are_twenty_records(address: str, store: Path, browser: Any, tmp_path: Path) -> None:
    page, asked = enter(browser, address, "ann")
    pressed = [KEYS[number % 4] for number in range(20)]
    for number, key in enumerate(pressed):
        press(page, key)
        assert len(votes_of(store, "ann")) == done(page) == number + 1
    source = page.content()
    picture = page.screenshot(path=tmp_path / "page.png")
    assert address.startswith("http://127.0.0.1:")
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert len(picture) > 10_000
    votes = votes_of(store, "ann")
    assert [row.choice for row in votes] == [CHOICES[key] for key in pressed]
    assert [row.repeat for row in votes] == [0] * 9 + [1] + [0] * 9 + [1]
    assert max(Counter((row.pair_id, row.repeat) for row in votes).values()) == 1
    assert consistency(votes) is not None
    assert {row.digest_a < row.digest_b for row in votes} == {True, False}
    hidden = {row.digest_a for row in votes} | {row.digest_b for row in votes} | {row.pair_id for row in votes}
    assert not [text for text in hidden if text in source]


def test_undo_zoom_and_two_annotators_at_once(address: str, store: Path, browser: Any) -> None:
    bob, _ = enter(browser, address, "bob")
    cleo, _ = enter(browser, address, "cleo")
    for page in (bob, cleo, bob, cleo):
        press(page, "ArrowLeft")
    press(bob, "u")
    assert done(bob) == 1
    press(bob, "x")
    bob.keyboard.press("z")
    assert bob.locator("body.zoomed").count() == 1
    bob.evaluate("for (let k = 0; k < 5; k++) document.getElementById('vote-b').click()")
    bob.wait_for_function("Number(document.querySelector('#progress').dataset.done) >= 3")
    bob.wait_for_timeout(500)
    assert done(bob) == 3
    assert [row.choice for row in votes_of(store, "bob")] == ["a", "both_bad", "b"]
    assert [row.choice for row in votes_of(store, "cleo")] == ["a", "a"]
    assert [row.annotator for row in read(store).undos] == ["bob"]
    assert not {row.pair_id for row in votes_of(store, "bob")} & {row.pair_id for row in votes_of(store, "cleo")}


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080), (390, 844)])
def test_pictures_and_buttons_are_in_sight_without_scrolling(
    address: str, browser: Any, width: int, height: int
) -> None:
    page, _ = enter(browser, address, "eye")
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(300)
    buttons = [f"#vote-{choice}" for choice in CHOICES.values()]
    boxes = [page.locator(part).first.bounding_box() for part in ("#board .restored .frame", *buttons, "#undo")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes), boxes
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes), boxes


def test_another_process_with_a_login_goes_on_where_the_first_was(
    candidates: Path, store: Path, browser: Any, tmp_path: Path
) -> None:
    before = votes_of(store, "bob")
    login = tmp_path / "login"
    login.write_text("bob:secret\n")
    login.chmod(0o600)
    options = ("--candidates", candidates, "--votes", store, "--login", login)
    with studio(*options, log=tmp_path / "log") as address:
        page = browser.new_context().new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        for attempt in ("wrong", "secret"):
            page.locator("input").nth(0).fill("bob")
            page.locator("input[type=password]").fill(attempt)
            with page.expect_response("**/login") as answer:
                page.get_by_role("button", name="Login").click()
            assert answer.value.ok == (attempt == "secret")
            assert page.locator("#board").count() == 0 or attempt == "secret"
            page.wait_for_timeout(500)
        page.wait_for_selector("#board")
        assert done(page) == len(before)
        press(page, "ArrowRight")
    after = votes_of(store, "bob")
    assert after[:-1] == before
    assert after[-1].choice == "b"
    assert after[-1].pair_id not in {row.pair_id for row in before}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", "0.0.0.0"], "others can reach this address"),
        (["--login", "open"], "others may read it"),
        (["--login", "none"], "no such file"),
        (["--candidates", "empty"], "holds no candidates"),
    ],
)
def test_bad_options_are_one_line(
    candidates: Path, program: Any, tmp_path: Path, options: list[str], reason: str
) -> None:
    (tmp_path / "open").write_text("a:b\n")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").mkdir()
    found = program("studio", "--candidates", candidates, "--votes", "votes", *options, cwd=tmp_path)
    assert found.returncode == 2
    assert reason in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
