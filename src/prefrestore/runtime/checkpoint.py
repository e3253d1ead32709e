"""Checkpoints that survive ``kill -9``: atomic, rotated, fingerprinted, and free of pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefrestore import artifacts
from prefrestore.config import Section
from prefrestore.runtime.sharding import cut_like

ROOT_VARIABLE = "PREFRESTORE_CHECKPOINTS"
KEPT_CHECKPOINTS = 2
KEPT_FINGERPRINTS = 4


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a trainer after ``step`` steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def fingerprint(name: str, config: Section, inputs: Mapping[str, Path]) -> str:
    """Return a digest of trainer name, configuration, input contents and the package's code."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        code.update(f"{source.relative_to(package).as_posix()}\0{artifacts.file_digest(source)}\n".encode())
    whole = {
        "name": name,
        "config": config.identity(),
        "inputs": {key: artifacts.digest(path) for key, path in inputs.items()},
        "code": code.hexdigest(),
    }
    return hashlib.sha256(artifacts.canonical_json(whole).encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one trainer under one fingerprint; another's are never adopted."""

    def __init__(self, name: str, config: Section, inputs: Mapping[str, Path], root: Path | None = None) -> None:
        """Open the folder ``ROOT/name/fingerprint``; the root is ``$PREFRESTORE_CHECKPOINTS`` or ``.checkpoints``."""
        base = root or Path(os.environ.get(ROOT_VARIABLE, ".checkpoints"))
        self.folder = base / name / fingerprint(name, config, inputs)
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        others = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in others[:-KEPT_FINGERPRINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all, and drop the oldest."""
        target = self.folder / f"step-{checkpoint.step:08d}"
        if target.exists():
            return
        with artifacts.replacing(target) as folder:
            tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
            save_file(tensors, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps(dict(checkpoint.state)), encoding="utf-8")
            _sync(folder)
        for old in self._finished()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None on a fresh start."""
        finished = self._finished()
        if not finished:
            return None
        folder = finished[-1]
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(int(folder.name.removeprefix("step-")), load_file(folder / "tensors.safetensors"), state)

    def _finished(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """Return an optimizer's per-parameter state as named tensors ``prefix.index.key``."""
    states = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{key}": torch.as_tensor(value).clone()
        for index, state in states.items()
        for key, value in state.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load what :func:`pack_optimizer` gave; hyper-parameters stay those of ``optimizer``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            states.setdefault(int(index), {})[key] = cut_like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def select(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors under ``prefix.``, with the prefix taken off."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors with ``prefix.`` put before every name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
