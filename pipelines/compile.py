"""Compiling the pipelines to packages for Kubeflow; those in ``compiled/`` are golden."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from pipelines import resources
from pipelines.evaluate import evaluate
from pipelines.full import full
from pipelines.realign import realign

PIPELINES: Mapping[str, BaseComponent] = {"full": full, "realign": realign, "evaluate": evaluate}
GOLDEN = Path(__file__).parent / "compiled"


def compile_one(name: str, target: Path, shared_memory: str = resources.SHARED_MEMORY) -> None:
    """Write the package of a pipeline; the size of /dev/shm is fixed here, Kubeflow has no parameter for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(PIPELINES[name], str(target))
    text = target.read_text(encoding="utf-8")
    target.write_text(text.replace(f"sizeLimit: {resources.SHARED_MEMORY}", f"sizeLimit: {shared_memory}"), "utf-8")
