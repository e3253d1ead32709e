"""Limits that keep the project readable, and what must not be committed."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml

from prefrestore.registry.shipped import MAX_BYTES, SHIPPED


def _tracked(repository: Path) -> list[Path]:
    """Return the files that git has or would take; without git all that look like ours."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in done.stdout.splitlines() if (path := repository / name).is_file()]


def _sources(repository: Path) -> list[Path]:
    return sorted((repository / "src").rglob("*.py"))


def test_files_are_short(repository: Path) -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in _sources(repository)}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_functions_are_short(repository: Path) -> None:
    """The limits of the design: half of all functions under 10 lines, nine of ten under 35."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in _sources(repository)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert statistics.median(lengths) <= 10
    assert lengths[int(len(lengths) * 0.9)] <= 35


def test_public_functions_are_documented(repository: Path) -> None:
    bare = [
        f"{path.relative_to(repository)}: {node.name}"
        for path in _sources(repository)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def test_makefile_has_at_most_fourteen_targets(repository: Path) -> None:
    text = (repository / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):.*## ", text, flags=re.MULTILINE)
    assert len(targets) <= 14
    assert {"setup", "run", "test", "check", "bench"} <= set(targets)
    assert "make test" in (repository / ".ci" / "run").read_text(encoding="utf-8")


def test_locks_leave_platform_packages_to_torch(repository: Path) -> None:
    run, dev = ((repository / "requirements" / f"{name}.lock").read_text(encoding="utf-8") for name in ("run", "dev"))
    for text in (run, dev):
        lines = text.split()
        assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ]+", line) for line in lines), text
        assert not [line for line in lines if line.startswith(("nvidia-", "cuda-", "triton"))]
    assert set(run.split()) <= set(dev.split())


def test_nothing_large_or_made_is_committed_but_the_weights_that_ship(repository: Path) -> None:
    shipped = [path for path in _tracked(repository) if path.is_relative_to(SHIPPED)]
    assert sum(path.stat().st_size for path in shipped) <= MAX_BYTES
    tracked = [path for path in _tracked(repository) if path not in shipped]
    assert [path for path in tracked if path.stat().st_size > 2**20] == []
    made = {".safetensors", ".parquet", ".db", ".pkl", ".pt", ".pyc"}
    assert [path for path in tracked if path.suffix in made] == []


@pytest.mark.parametrize("pattern", [r"/home/\w", r"/root/", r"/Users/\w", "AKIA[0-9A-Z]{16}", "PRIVATE KEY-----"])
def test_no_local_path_and_no_secret_is_committed(pattern: str, repository: Path) -> None:
    allowed = {Path(__file__).name, ".pre-commit-config.yaml"}
    texts = (
        path
        for path in _tracked(repository)
        if path.name not in allowed and path.suffix not in {".png", ".safetensors"}
    )
    found = [path.name for path in texts if re.search(pattern, path.read_text(encoding="utf-8", errors="ignore"))]
    assert found == []


def test_hooks_are_the_checks_of_make(repository: Path) -> None:
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    for check in ("ruff format", "ruff check", "lint-imports", "config check", "pipeline dvc --check"):
        assert check in entries
