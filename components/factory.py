"""A row of the stage table becomes a container component of Kubeflow Pipelines; the image needs no kfp."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.preflight import OPTIONS
from components.step import PARALLEL
from components.views import PAGE_SUFFIX, PAGES
from prefrestore.stage import ARTIFACTS, STAGES, Stage

TYPES: Mapping[str, type[dsl.Artifact]] = {
    "Dataset": dsl.Dataset,
    "Model": dsl.Model,
    "Metrics": dsl.Metrics,
    "HTML": dsl.Artifact,  # a folder with data; its page is an output of its own, of type HTML
    "Artifact": dsl.Artifact,
}
IMAGE = "prefrestore/data-python:latest"
"""Stands in the components only: pipelines replace it by a parameter of the run."""


@dataclass(frozen=True)
class Interface:
    """What a component reads and writes, in the order of its arguments."""

    name: str
    module: str
    help: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Name to type; those of ``optional`` may be left out."""
    optional: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    """Inputs that are no arguments: read from the executor's input, or there for the cache's key alone."""
    words: tuple[str, ...] = ()
    """Arguments before all others."""


def of_stage(row: Stage) -> Interface:
    """Return the interface of a stage: a port per artifact, its section as JSON, the version of outside data."""
    pages = {f"{name}{PAGE_SUFFIX}": dsl.HTML for name in row.outputs if name in PAGES}
    launch = {"launch": str} if row.name in PARALLEL else {}
    return Interface(
        name=row.name,
        module="components.step",
        help=row.help,
        parameters={"section": str, **launch, "data_version": str},
        optional=("data_version",),
        inputs={name: TYPES[ARTIFACTS[name].kind] for name in row.inputs},
        outputs={name: TYPES[ARTIFACTS[name].kind] for name in row.outputs} | pages,
        silent=("data_version",),
        words=(row.name,),
    )


def preflight() -> BaseComponent:
    """Return the first step: check the choices, hand them out."""
    outputs: dict[str, Any] = {f"section_{name}": str for name in STAGES}
    texts = ("seen_version", "accelerator", "gpus", "gpus_parallel", "launch")
    outputs |= dict.fromkeys(texts, str)
    outputs |= {"degrade_parts": list, "node_selector": dict, "tolerations": list}
    described = Interface(
        "preflight",
        "components.preflight",
        "check every choice before a GPU is asked for",
        parameters=dict.fromkeys(OPTIONS, str),
        optional=OPTIONS,
        outputs=outputs,
    )
    return component(described)


def fetch(names: Sequence[str], source: str) -> BaseComponent:
    """Return the step that takes artifacts from an earlier run (``root``) or from a release (``champion``)."""
    described = Interface(
        f"fetch_from_{source}",
        "components.fetch",
        "take artifacts of an earlier run" if source == "root" else "take the parts of a release",
        parameters={"data_version": str} | ({"root": str} if source == "root" else {}),
        inputs={"champion": dsl.Model} if source == "champion" else {},
        outputs={name: TYPES[ARTIFACTS[name].kind] for name in names},
        silent=("data_version",),
    )
    return component(described)


def merge() -> BaseComponent:
    """Return the step that puts shards of pairs together."""
    described = Interface(
        "merge",
        "components.merge",
        "put the shards of pairs together",
        inputs={"parts": list[dsl.Dataset]},
        outputs={"pairs": dsl.Dataset},
        silent=("parts",),
    )
    return component(described)


def notify() -> BaseComponent:
    """Return the step that tells how a run ended."""
    described = Interface(
        "notify",
        "components.notify",
        "tell a webhook how the run ended",
        parameters={"pipeline": str, "status": dsl.PipelineTaskFinalStatus},
        silent=("status",),
    )
    return component(described)


def stages() -> dict[str, BaseComponent]:
    """Return the components of all stages by name."""
    return {name: component(of_stage(row)) for name, row in STAGES.items()}


def component(described: Interface) -> BaseComponent:
    """Build the component: kfp reads the interface off a function's signature, so one is made from the table."""
    return dsl.container_component(_function(described))


def _function(described: Interface) -> Callable[..., dsl.ContainerSpec]:
    signature = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, kind, default in _signature(described)
        ]
    )

    def function(*values: Any) -> dsl.ContainerSpec:
        named = dict(zip(signature.parameters, values, strict=True))
        words = [*described.words, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
        for name, value in named.items():
            if name not in described.silent and not name.endswith(PAGE_SUFFIX) and name in _spoken(described):
                words += [f"--{name}", value.path if name not in described.parameters else value]
        return dsl.ContainerSpec(image=IMAGE, command=["python3", "-m", described.module], args=words)

    function.__name__ = described.name
    function.__doc__ = f"{described.help[0].upper()}{described.help[1:]}."
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _signature(described: Interface) -> list[tuple[str, Any, Any]]:
    empty = inspect.Parameter.empty
    rows = [(name, kind, "" if name in described.optional else empty) for name, kind in described.parameters.items()]
    rows += [(name, dsl.Input[kind], empty) for name, kind in described.inputs.items()]
    for name, kind in described.outputs.items():
        wrapped = dsl.OutputPath(kind) if kind in (str, list, dict) else dsl.Output[kind]
        rows.append((name, wrapped, empty))
    return rows


def _spoken(described: Interface) -> set[str]:
    """Return the names that stand in the command; a stage names its outputs too."""
    outputs = described.outputs if described.module == "components.step" else {}
    return {*described.parameters, *described.inputs, *outputs}
