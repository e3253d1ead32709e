"""``prefrestore degrade`` and ``prefrestore merge``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prefrestore.commands import degrade as degrade_module
from prefrestore.commands import merge as merge_module
from prefrestore.data.degradation import degrade
from prefrestore.data.images import decode
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.recipes import draw_record, recipes
from prefrestore.data.sheet import CELL, GAP, HEADER, LABEL, PAPER, SAMPLES
from prefrestore.errors import UserError


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(
        degrade_module.command, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def picture(path: Path, width: int = 90, height: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)
    return path


def test_one_image_of_any_shape_with_its_record(tmp_path: Path) -> None:
    source, target = picture(tmp_path / "a.png"), tmp_path / "lq.png"
    call(source, target, "--recipe", "codeformer", "--seed", "3", "--severity", "severe")
    record = DegradationRecord.from_json((tmp_path / "lq.json").read_text())
    assert (record.recipe, record.severity, record.height, record.width) == ("codeformer", "severe", 60, 90)
    made = decode(target.read_bytes())
    np.testing.assert_array_equal(degrade(decode(source.read_bytes()), record), made)
    before = target.read_bytes()
    call(source, target, "--recipe", "codeformer", "--seed", "3", "--severity", "severe", "--force")
    assert target.read_bytes() == before
    call(source, target, "--recipe", "codeformer", "--seed", "4", "--severity", "severe", "--force")
    assert target.read_bytes() != before


def test_a_folder_keeps_its_names_and_sets_bad_files_aside(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "sub/ü.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.png").write_text("no image")
    said = call(tmp_path / "in", tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["a.jpg.png", "a.png.png", "sub/ü.png"]
    assert "set aside: bad.png: not an image of a known format" in said
    assert "3 written" in said
    assert "1 set aside" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png", "out.png"), "no such file or folder"),
        (("a.png", "out.jpg"), "written as PNG"),
        (("a.png", "a.png"), "exists already"),
        (("a.png", "out.png", "--recipe", "mud"), "recipe 'mud' is unknown"),
        (("text.png", "out.png"), "no image could be read"),
        (("a.png", "a.png", "--force"), "is the source itself"),
        (("a.png", "b.png"), "b.json exists already"),
        (("folder", "folder/out"), "lies in folder: results would be taken for images"),
        (("a.png", "text.png/out.png"), "text.png/out.png: cannot be written"),
        (("text.png", "sheet.png", "--sheet"), "text.png: not an image of a known format"),
        (("a.png", "sheet.png", "--sheet", "--recipe", "lrpo"), "leave out --recipe"),
        (("a.png", "a.png", "--sheet", "--force"), "is the source itself"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "folder" / "c.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "b.json").write_text("{}")
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=message):
        call(*arguments)
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_sheet_shows_every_recipe_at_three_severities(tmp_path: Path) -> None:
    """The cells are the image and what the recipes make of it; a recipe of one severity leaves the others white."""
    source = picture(tmp_path / "a.png", width=160, height=160)
    call(source, tmp_path / "sheet.png", "--sheet", "--seed", "2")
    sheet, hq = decode((tmp_path / "sheet.png").read_bytes()), decode(source.read_bytes())

    def cell(row: int, column: int) -> np.ndarray:
        top, left = HEADER + row * (160 + GAP), LABEL + column * (CELL + GAP)
        return sheet[top : top + 160, left : left + CELL]

    for row, (name, recipe) in enumerate(recipes().items()):
        np.testing.assert_array_equal(cell(row, 0), hq)
        for place, severity in enumerate(("mild", "moderate", "severe")):
            for sample in range(SAMPLES):
                found = cell(row, 1 + place * SAMPLES + sample)
                if recipe.severity in {"any", severity}:
                    record = draw_record(recipe, 160, 2, f"sheet-{sample}", severity)  # type: ignore[arg-type]
                    np.testing.assert_array_equal(found, degrade(hq, record), err_msg=name)
                else:
                    assert (found == PAPER).all()
    assert sheet.shape[0] == HEADER + len(recipes()) * (160 + GAP)


def test_recipes_are_listed_with_their_sources() -> None:
    assert "gfpgan: GFPGAN, Wang et al. 2021, arXiv 2101.04061" in call("--recipes")


def test_merge_refuses_what_is_no_part(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    arguments = [str(tmp_path / "part"), "--output", str(tmp_path / "whole")]
    with pytest.raises(UserError, match="is not a finished artifact"):
        CliRunner().invoke(merge_module.command, arguments, catch_exceptions=False)
    assert not (tmp_path / "whole").exists()
