"""A user's mistake is one clear line on standard error and exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrestore import config, configfile
from prefrestore.errors import UserError


def _is_one_line(done, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("prefrestore: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def params(repository: Path) -> dict:
    """The smoke preset's values."""
    return yaml.safe_load((repository / "presets" / "smoke.yaml").read_text(encoding="utf-8"))


def _save(values: dict, folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kl_wieght", 0.1, ("align.kl_wieght", "unknown key")),
        ("kl_weight", "much", ("align.kl_weight", "number")),
        ("kl_weight", -1.0, ("align.kl_weight", "greater")),
        ("kl_weight", float("nan"), ("align.kl_weight",)),
        ("groups", 2.5, ("align.groups", "integer")),
        ("groups", True, ("align.groups", "integer")),
        ("old_decay", "sometimes", ("align.old_decay", "paper")),
        ("lora", None, ("align.lora",)),
    ],
)
def test_wrong_value_is_named(key, value, words, params, tmp_path: Path, program) -> None:
    params["align"][key] = value
    file = _save(params, tmp_path)
    _is_one_line(program("config", "check", file, cwd=tmp_path), "params.yaml", *words)
    arguments = ["--pairs", "p", "--base", "b", "--reward", "r", "--policy", "out/policy"]
    _is_one_line(program("stage", "align", "--config", file, *arguments, cwd=tmp_path), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "- a list\n", "align: {\n", "\x00", "a: &x [*x]\n", "!!python/object:os.system {}\n"]
)
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path, program) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    _is_one_line(program("config", "check", cwd=tmp_path), "params.yaml")


def test_a_missing_file_and_a_folder_in_its_place(tmp_path: Path, program) -> None:
    _is_one_line(program("config", "check", cwd=tmp_path), "params.yaml", "no such")
    (tmp_path / "params.yaml").mkdir()
    _is_one_line(program("config", "check", cwd=tmp_path), "params.yaml")


def test_an_unknown_section(params, tmp_path: Path, program) -> None:
    params["allign"] = params["align"]
    file = _save(params, tmp_path)
    _is_one_line(program("stage", "gate", "--config", file, "--metrics", "m", "--verdict", "v", cwd=tmp_path), "allign")


def test_a_stage_without_its_input(params, tmp_path: Path, program) -> None:
    file = _save(params, tmp_path)
    done = program("stage", "degrade", "--config", file, "--faces", "nowhere", "--pairs", "out/pairs", cwd=tmp_path)
    _is_one_line(done, "degrade", "faces", "nowhere", "does not exist")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


def test_an_unfinished_and_a_wrong_and_an_older_artifact(params, tmp_path: Path, program) -> None:
    file = _save(params, tmp_path)
    arguments = ["stage", "degrade", "--config", file, "--faces", "faces", "--pairs", "out/pairs"]
    faces = tmp_path / "faces"
    faces.mkdir()
    _is_one_line(program(*arguments, cwd=tmp_path), "faces", "not a finished artifact")
    manifest = {"artifact": "pairs", "stage": "degrade", "config": {}, "inputs": {}, "format_version": 1}
    for change, word in (({}, "pairs"), ({"format_version": 0}, "format version 0")):
        (faces / "manifest.json").write_text(json.dumps(manifest | change), encoding="utf-8")
        _is_one_line(program(*arguments, cwd=tmp_path), "faces", word)
    for damage in ("", "{", "[]", "7", '{"format_version": 1}'):
        (faces / "manifest.json").write_text(damage, encoding="utf-8")
        _is_one_line(program(*arguments, cwd=tmp_path), "faces", "manifest.json")
    assert not (tmp_path / "out").exists()


def test_an_output_where_none_can_be(params, tmp_path: Path, program) -> None:
    file = _save(params, tmp_path)
    done = program("stage", "fetch_champion", "--config", file, "--champion", "params.yaml/champion", cwd=tmp_path)
    _is_one_line(done, "params.yaml", "choose another place")
    done = program("stage", "fetch_champion", "--config", file, "--champion", "/proc/champion", cwd=tmp_path)
    _is_one_line(done, "/proc/champion", "choose another place")


def test_both_or_neither_source_of_configuration(params, tmp_path: Path, program) -> None:
    ports = ["--metrics", "m", "--verdict", "v"]
    _is_one_line(program("stage", "gate", *ports, cwd=tmp_path), "--config", "--section")
    file = _save(params, tmp_path)
    both = ["--config", file, "--section", "{}"]
    _is_one_line(program("stage", "gate", *both, *ports, cwd=tmp_path), "--config", "--section")
    _is_one_line(program("stage", "gate", "--section", "{", *ports, cwd=tmp_path), "JSON")
    _is_one_line(program("stage", "gate", "--section", "[]", *ports, cwd=tmp_path), "gate")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "nonsense"),
        (["stage", "nonsense"], "nonsense"),
        (["stage", "gate"], "--metrics"),
        (["stage", "gate", "--nonsense"], "--nonsense"),
        (["config", "use"], "--data"),
        (["config", "use", "nonsense"], "nonsense"),
        (["config", "show", "nonsense"], "params.yaml"),
        (["pipeline", "dvc", "--check"], "params.yaml"),
    ],
)
def test_wrong_usage(arguments: list[str], word: str, tmp_path: Path, program) -> None:
    _is_one_line(program(*arguments, cwd=tmp_path), word)
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_no_folder(repository: Path, tmp_path: Path, program) -> None:
    (tmp_path / "presets").mkdir()
    text = (repository / "presets" / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "presets" / "smoke.yaml").write_text(text, encoding="utf-8")
    _is_one_line(program("config", "use", "smoke", "--data", "nowhere", cwd=tmp_path), "nowhere", "folder")
    assert not (tmp_path / "params.yaml").exists()


def test_choosing_a_preset_and_data(repository: Path, tmp_path: Path, program) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "photographs").mkdir()
    text = (repository / "presets" / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "presets" / "smoke.yaml").write_text(text, encoding="utf-8")
    assert program("config", "use", "smoke", cwd=tmp_path).returncode == 0
    active = tmp_path / "params.yaml"
    assert active.read_text(encoding="utf-8") == text
    assert program("config", "use", "--data", "photographs", cwd=tmp_path).returncode == 0
    plain, changed = (yaml.safe_load(value) for value in (text, active.read_text(encoding="utf-8")))
    assert changed["ingest"] == plain["ingest"] | {"source": "folder", "uri": "photographs"}
    assert {key: value for key, value in changed.items() if key != "ingest"} == {
        key: value for key, value in plain.items() if key != "ingest"
    }
    assert "- photographs\n" in (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
    before = active.stat().st_mtime_ns
    assert program("config", "use", "smoke", "--data", "photographs", cwd=tmp_path).returncode == 0
    assert active.stat().st_mtime_ns == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=JSON, section=st.sampled_from(["align", "ingest", "gate", "publish"]))
def test_no_data_breaks_the_parser(data, section: str) -> None:
    """Whatever stands in a section, the answer is a value or one line that names the place."""
    model = {field.alias or name: field.annotation for name, field in config.Config.model_fields.items()}[section]
    message = None
    try:
        configfile.parse(model, data, "file")
    except UserError as error:
        message = str(error)
    assert message is None or re.fullmatch(r"file: .+: .+", message)


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=200))
def test_no_bytes_break_the_reader(noise: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("config") / "params.yaml"
    path.write_bytes(noise)
    with pytest.raises(UserError) as caught:
        configfile.load(path)
    assert "\n" not in str(caught.value)
