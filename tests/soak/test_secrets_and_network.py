"""No credential is written anywhere, and the default path opens no connection to another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefrestore.commands import serve, studio
from prefrestore.stage import ARTIFACTS, STAGES
from support import releases

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAsecretkeyidone",
    "AWS_SECRET_ACCESS_KEY": "secret-access-key-two",
    "AWS_SESSION_TOKEN": "secret-session-token-three",
    "MLFLOW_TRACKING_TOKEN": "secret-tracking-token-four",
    "MLFLOW_TRACKING_PASSWORD": "secret-password-five",
    "HF_TOKEN": "hf_secretsix",
}
GUARD = """
import socket, sys
def _guard(event, arguments):
    if event in ("socket.connect", "socket.sendto") and len(arguments) > 1 and isinstance(arguments[1], tuple):
        if arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
            sys.stderr.write(f"OUTGOING {arguments[1]}\\n")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "::1", "localhost", "", None):
        sys.stderr.write(f"OUTGOING name {arguments[0]}\\n")
sys.addaudithook(_guard)
"""
"""Loaded by every Python process through ``sitecustomize``; children of stages too."""


@pytest.fixture
def guarded(tmp_path: Path, repository: Path) -> dict[str, str]:
    """An environment with credentials, whose processes tell of every connection to another machine."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(tmp_path / "guard"), str(repository / "src")])
    return {**SECRETS, "PYTHONPATH": path}


def _secret_in(text: str) -> list[str]:
    return [name for name, value in SECRETS.items() if value in text]


def _files_with_secrets(root: Path) -> list[str]:
    values = [value.encode() for value in SECRETS.values()]
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if any(value in path.read_bytes() for value in values)]


def test_the_guard_tells_of_a_connection(guarded: dict[str, str]) -> None:
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('203.0.113.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **guarded}, capture_output=True, text=True, check=False
    )
    assert "OUTGOING ('203.0.113.1', 9)" in done.stderr


@pytest.mark.xdist_group("graph")
def test_stages_and_compilation_write_no_secret_and_call_nobody(
    finished: Path, guarded: dict[str, str], program: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """What reads from the outside world or writes for it runs again in a finished graph, with credentials around."""
    said = ""
    for name in ("ingest", "fetch_champion", "evaluate", "gate", "publish"):
        row = STAGES[name]
        paths = [f"--{port}={ARTIFACTS[port].path}" for port in (*row.inputs, *row.outputs)]
        done = program("stage", name, "--config", "params.yaml", *paths, cwd=finished, **guarded)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    for command in (["report"], ["pipeline", "compile", "--output", str(tmp_path / "compiled")], ["model", "list"]):
        done = program(*command, cwd=finished, **guarded)
        said += done.stdout + done.stderr
    assert "OUTGOING" not in said
    assert _secret_in(said) == []
    assert _files_with_secrets(finished) == []
    assert _files_with_secrets(tmp_path / "compiled") == []


def test_failures_do_not_tell_the_credentials(
    guarded: dict[str, str], program: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Nobody listens there; the line that says so must not carry what was to be sent."""
    nobody = {**guarded, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    commands = [
        ["prefs", "stats", "s3://bucket/votes"],
        ["model", "list", "--registry", "http://127.0.0.1:9"],
        ["model", "pull", f"s3://bucket/releases/{'0' * 64}"],
    ]
    for command in commands:
        done = program(*command, cwd=tmp_path, **nobody)
        assert done.returncode == 2, done.stderr
        assert _secret_in(done.stdout + done.stderr) == []
    assert _files_with_secrets(tmp_path / "guard") == []


def test_a_publication_keeps_no_credential(
    guarded: dict[str, str],
    program: Callable[..., subprocess.CompletedProcess[str]],
    empty_registry: bytes,
    tmp_path: Path,
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_registry)
    section = {"registry": "sqlite:///mlflow.db", "store": "releases", "model": "restorer", "licence": "other"}
    for number, passed in enumerate((True, False)):
        ports = releases.candidate(root, number, passed=passed)
        paths = [f"--{name}={path}" for name, path in ports.items()]
        done = program("stage", "publish", "--section", json.dumps(section), *paths, cwd=root, **guarded)
        assert done.returncode == 0, done.stderr
        assert "OUTGOING" not in done.stderr
        assert _secret_in(done.stdout + done.stderr) == []
    assert _files_with_secrets(root) == []


def test_compiled_packages_name_secrets_and_hold_none(repository: Path) -> None:
    """Credentials come to pods from secrets of the cluster, by name; the one to fill in is empty."""
    files = [*(repository / "pipelines" / "compiled").glob("*.yaml"), *(repository / "deploy").rglob("*.yaml")]
    assert files
    for path in files:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if isinstance(document, dict) and document.get("kind") == "Secret":
                assert not any((document.get("stringData") or {}).values())
                assert not document.get("data")


@pytest.mark.parametrize("command", [serve.command, studio.command])
def test_services_listen_on_loopback_by_default(command) -> None:
    hosts = [option.default for option in command.params if option.name == "host"]
    assert hosts == ["127.0.0.1"]
