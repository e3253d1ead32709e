"""Stage table, command line, ``dvc.yaml``, configuration sections and presets say the same."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefrestore import config, configfile, dvcfile
from prefrestore.commands import stage as stage_commands
from prefrestore.errors import UserError
from prefrestore.registry.shipped import TEMPLATE
from prefrestore.stage import ARTIFACTS, STAGES

PRESETS = ("smoke", "tiny", "portrait", "full", "bench")
ORDER = list(STAGES)


def test_every_artifact_has_one_writer_and_writers_come_before_readers() -> None:
    written: list[str] = []
    for row in STAGES.values():
        assert set(row.inputs) <= set(written), row.name
        written.extend(row.outputs)
    assert sorted(written) == sorted(ARTIFACTS)


def test_sections_are_the_stages_in_order() -> None:
    sections = [field.alias or name for name, field in config.Config.model_fields.items()]
    types = [field.annotation for field in config.Config.model_fields.values()]
    assert sections == ORDER
    assert types == [row.section for row in STAGES.values()]


def test_source_keys_exist_in_their_sections() -> None:
    for row in STAGES.values():
        assert set(row.sources) <= set(row.section.model_fields), row.name


@pytest.mark.parametrize("name", ORDER)
def test_stage_function_takes_config_inputs_and_outputs(name: str, repository: Path) -> None:
    source = repository / "src" / "prefrestore" / "stages" / f"{name}.py"
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 100
    (run,) = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if _is_run(node))
    row = STAGES[name]
    assert [(arg.arg, ast.unparse(arg.annotation)) for arg in run.args.args] == [("config", row.section.__name__)]
    assert [arg.arg for arg in run.args.kwonlyargs] == [*row.inputs, *row.outputs]
    assert {ast.unparse(arg.annotation) for arg in run.args.kwonlyargs} == {"Path"}
    assert ast.unparse(run.returns) == "None"


def _is_run(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "run"


def test_no_stage_file_without_a_row(repository: Path) -> None:
    files = {path.stem for path in (repository / "src" / "prefrestore" / "stages").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)


@pytest.mark.parametrize("name", ORDER)
def test_command_has_one_option_per_port(name: str) -> None:
    command = stage_commands.command.commands[name]
    options = {option.name for option in command.params}
    assert options == {"config_file", "section_json", *STAGES[name].inputs, *STAGES[name].outputs}


def test_dvc_file_is_in_step_with_table_code_and_configuration(repository: Path) -> None:
    active = configfile.load(repository / "params.yaml")
    assert dvcfile.in_step(repository / "dvc.yaml", active), "run: prefrestore pipeline dvc --write"


def test_dvc_file_says_what_the_table_says(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(stages) == ORDER
    for name, row in STAGES.items():
        entry = stages[name]
        assert entry["params"] == [name]
        assert entry["outs"] == [ARTIFACTS[port].path for port in row.outputs]
        assert {ARTIFACTS[port].path for port in row.inputs} <= set(entry["deps"])
        assert f"src/prefrestore/stages/{name}.py" in entry["deps"]
        assert entry["cmd"].split()[:3] == ["prefrestore", "stage", name]
        assert all((repository / path).exists() for path in entry["deps"] if path.startswith("src/"))


def test_dvc_file_names_a_folder_of_images_as_dependency(repository: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((repository / "presets" / "tiny.yaml").read_text(encoding="utf-8"))
    values["ingest"] |= {"source": "folder", "uri": str(tmp_path)}
    stages = yaml.safe_load(dvcfile.render(configfile.parse(config.Config, values, "test")))["stages"]
    assert str(tmp_path) in stages["ingest"]["deps"]
    assert [name for name in stages if str(tmp_path) in stages[name]["deps"]] == ["ingest"]


def test_code_dependencies_leave_out_what_cannot_matter() -> None:
    """Editing the command line or the report must not retrain anything."""
    for name in ("train_codec", "pretrain", "align"):
        files = dvcfile.code(STAGES[name])
        assert not [path for path in files if "/commands/" in path or "/evaluation/" in path or path.endswith("cli.py")]
        assert [path for path in files if path.startswith(("src/prefrestore/models/", "src/prefrestore/rl/"))]


def test_code_dependencies_follow_imports_that_are_loaded() -> None:
    """An independent view: everything of ours that importing a stage loads is listed, or is known to have no effect."""
    probe = (
        "import importlib, sys; importlib.import_module('prefrestore.stages.{name}');"
        "print(*[m for m in sys.modules if m.startswith('prefrestore.')])"
    )
    for name in ("ingest", "evaluate"):
        done = subprocess.run(
            [sys.executable, "-c", probe.format(name=name)], capture_output=True, text=True, check=True
        )
        loaded = {module.removeprefix("prefrestore.") for module in done.stdout.split()}
        listed = {
            path.removeprefix("src/prefrestore/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for path in dvcfile.code(STAGES[name])
        }
        package = Path(dvcfile.__file__).parent
        only_docstring = {
            module
            for module in loaded
            if (file := package.joinpath(*module.split("."), "__init__.py")).is_file()
            and len(ast.parse(file.read_text(encoding="utf-8")).body) <= 1
        }
        missing = {module for module in loaded - listed - only_docstring if not dvcfile.without_effect(module)}
        assert missing == set(), name


def test_every_data_file_of_the_package_belongs_to_a_stage_or_a_page_or_ships(repository: Path) -> None:
    """A template that no stage lists could change without anything being made again."""
    package = repository / "src" / "prefrestore"
    listed = {path for row in STAGES.values() for path in dvcfile.code(row)}
    apart = package / "serving", dvcfile.WEIGHTS, TEMPLATE
    lost = [
        path
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix not in {".py", ".pyc"}
        and not any(path.is_relative_to(folder) for folder in apart)
        and path.relative_to(repository).as_posix() not in listed
    ]
    assert lost == []


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_whole_and_valid(name: str, repository: Path) -> None:
    configfile.load(repository / "presets" / f"{name}.yaml")


def test_no_other_presets_are_untested(repository: Path) -> None:
    assert {path.stem for path in (repository / "presets").glob("*.yaml")} == set(PRESETS)


def test_committed_configuration_is_the_tiny_preset(repository: Path) -> None:
    """As git has it (the index): the working copy's may be another, chosen by ``config use``."""
    assert _indexed(repository, "params.yaml") == _indexed(repository, "presets/tiny.yaml")


def _indexed(repository: Path, name: str) -> bytes:
    done = subprocess.run(["git", "show", f":{name}"], cwd=repository, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else (repository / name).read_bytes()


def _leaves(model: type[config.Section], prefix: str = "") -> list[tuple[str, bool]]:
    """Return every field's dotted name and whether it has a default."""
    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        found.append((key, not field.is_required()))
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            found.extend(_leaves(field.annotation, f"{key}."))
    return found


def test_no_field_has_a_default() -> None:
    """So a preset that loads has set every field, and DVC sees every value."""
    assert [key for key, has_default in _leaves(config.Config) if has_default] == []


def test_circumstances_are_no_part_of_what_a_section_says(repository: Path) -> None:
    """Folders, addresses and process counts may change without anything being made again from it."""
    active = configfile.load(repository / "presets" / "tiny.yaml")
    for section in vars(active).values():
        assert not {"workers", "uri", "registry", "store"} & set(section.identity())
    assert set(active.align.model_dump()) - set(active.align.identity()) == {"workers"}


@pytest.mark.parametrize("missing", ["align.kl_weight", "ingest.seed", "pretrain.step1.steps", "gate"])
def test_a_missing_value_is_named(missing: str, repository: Path) -> None:
    values = yaml.safe_load((repository / "presets" / "tiny.yaml").read_text(encoding="utf-8"))
    *parents, last = missing.split(".")
    holder = values
    for part in parents:
        holder = holder[part]
    del holder[last]
    with pytest.raises(UserError, match=missing.replace(".", r"\.")):
        configfile.parse(config.Config, values, "test")


def test_editing_code_of_a_stage_shows_in_its_dependencies(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk sees imports inside functions and of packages' own files."""
    package = tmp_path / "prefrestore"
    shutil.copytree(repository / "src" / "prefrestore", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "data" / "extra.py").write_text('TEMPLATE = "extra.html.j2"\n', encoding="utf-8")
    (package / "data" / "extra.html.j2").write_text("<p>\n", encoding="utf-8")
    (package / "stages" / "ingest.py").write_text(
        "def run():\n    from prefrestore.data import extra\n    return extra\n", encoding="utf-8"
    )
    monkeypatch.setattr(dvcfile, "PACKAGE", package)
    assert dvcfile.code(STAGES["ingest"]) == [
        "src/prefrestore/artifacts.py",
        "src/prefrestore/data/extra.html.j2",
        "src/prefrestore/data/extra.py",
        "src/prefrestore/stages/ingest.py",
    ]
