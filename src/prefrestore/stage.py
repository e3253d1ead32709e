"""The stage table: every step of the graph, once. CLI, KFP components and ``dvc.yaml`` derive from it."""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from prefrestore import artifacts, config
from prefrestore.config import Section
from prefrestore.errors import UserError
from prefrestore.runtime.distributed import is_writer
from prefrestore.runtime.provenance import accelerators_used, git_commit

Kind = Literal["Dataset", "Model", "Metrics", "HTML", "Artifact"]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Artifact:
    """A folder that one stage writes and others read."""

    name: str
    kind: Kind
    path: str


ARTIFACTS: Mapping[str, Artifact] = {
    row.name: row
    for row in (
        Artifact("faces", "Dataset", "artifacts/faces"),
        Artifact("pairs", "Dataset", "artifacts/pairs"),
        Artifact("data_report", "HTML", "artifacts/data_report"),
        Artifact("codec", "Model", "artifacts/codec"),
        Artifact("baseline", "Model", "artifacts/baseline"),
        Artifact("base", "Model", "artifacts/base"),
        Artifact("candidates", "Dataset", "artifacts/candidates"),
        Artifact("preferences", "Dataset", "artifacts/preferences"),
        Artifact("reward", "Model", "artifacts/reward"),
        Artifact("policy", "Model", "artifacts/policy"),
        Artifact("champion", "Model", "artifacts/champion"),
        Artifact("metrics", "Metrics", "reports"),
        Artifact("report", "HTML", "artifacts/report"),
        Artifact("verdict", "Metrics", "artifacts/verdict"),
        Artifact("release", "Artifact", "artifacts/release"),
    )
}


@dataclass(frozen=True)
class Stage:
    """One row: a name, its section of the configuration, what it reads and writes, and where it runs."""

    name: str
    section: type[Section]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    device: Device
    help: str
    sources: tuple[str, ...] = ()
    """Keys of the section that may name data outside the graph."""


STAGES: Mapping[str, Stage] = {
    row.name: row
    for row in (
        Stage("ingest", config.IngestConfig, (), ("faces",), "cpu", "take faces from a source", ("uri",)),
        Stage("degrade", config.DegradeConfig, ("faces",), ("pairs",), "cpu", "make LQ/HQ pairs"),
        Stage(
            "validate",
            config.ValidateConfig,
            ("pairs",),
            ("data_report",),
            "cpu",
            "check the pairs' manifest",
            ("reference",),
        ),
        Stage(
            "train_codec",
            config.TrainCodecConfig,
            ("faces",),
            ("codec",),
            "gpu",
            "train codec and tokenizer",
            ("weights",),
        ),
        Stage("train_baseline", config.TrainBaselineConfig, ("pairs",), ("baseline",), "gpu", "train the yardstick"),
        Stage("pretrain", config.PretrainConfig, ("pairs", "codec"), ("base",), "gpu", "train the restorer"),
        Stage(
            "sample_candidates",
            config.SampleCandidatesConfig,
            ("pairs", "base"),
            ("candidates",),
            "gpu",
            "draw restorations to compare",
            ("checkpoints",),
        ),
        Stage(
            "collect_preferences",
            config.CollectPreferencesConfig,
            ("candidates", "pairs"),
            ("preferences",),
            "cpu",
            "gather judgements",
            ("votes",),
        ),
        Stage(
            "train_reward",
            config.TrainRewardConfig,
            ("pairs", "candidates", "preferences"),
            ("reward",),
            "gpu",
            "learn the reward from preferences",
            ("lpips_weights", "backbone"),
        ),
        Stage("align", config.AlignConfig, ("pairs", "base", "reward"), ("policy",), "gpu", "align by DiffusionNFT"),
        Stage("fetch_champion", config.FetchChampionConfig, (), ("champion",), "cpu", "fetch the pinned champion"),
        Stage(
            "evaluate",
            config.EvaluateConfig,
            ("pairs", "baseline", "base", "policy", "reward", "champion"),
            ("metrics", "report"),
            "gpu",
            "measure and report",
            ("lpips_weights",),
        ),
        Stage("gate", config.GateConfig, ("metrics",), ("verdict",), "cpu", "decide whether to publish"),
        Stage(
            "publish",
            config.PublishConfig,
            ("base", "policy", "reward", "metrics", "report", "verdict"),
            ("release",),
            "cpu",
            "register the release",
        ),
    )
}


def execute(stage: Stage, section: Section, paths: Mapping[str, Path]) -> None:
    """Run a stage: check its inputs, write its outputs whole or not at all, record the run beside them.

    Of several processes that train together only the first one's outputs are kept; the others' are thrown away.

    Args:
        stage: the row.
        section: its validated configuration.
        paths: a path for every input and output of the row.

    Raises:
        UserError: an input is missing or unfinished, or the stage found bad input.
    """
    inputs = {name: paths[name] for name in stage.inputs}
    digests = {name: _input_digest(stage, name, path) for name, path in inputs.items()}
    started = time.monotonic()
    with ExitStack() as stack:
        outputs = {name: stack.enter_context(_output(paths[name])) for name in stage.outputs}
        importlib.import_module(f"prefrestore.stages.{stage.name}").run(section, **inputs, **outputs)
        for name, folder in outputs.items():
            artifacts.write_manifest(folder, artifacts.Manifest(name, stage.name, section.identity(), digests))
    if is_writer():
        _write_run_record(stage, paths[stage.outputs[0]], time.monotonic() - started)


@contextmanager
def _output(path: Path) -> Iterator[Path]:
    if is_writer():
        with artifacts.replacing(path) as folder:
            yield folder
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder)


def _input_digest(stage: Stage, name: str, path: Path) -> str:
    if not path.is_dir():
        raise UserError(f"{stage.name}: input {name}: {path} does not exist: run the stage that writes it first")
    manifest = artifacts.read_manifest(path)
    if manifest.artifact != name:
        raise UserError(f"{stage.name}: input {name}: {path} holds {manifest.artifact}: give the path of {name}")
    return artifacts.digest(path)


def _write_run_record(stage: Stage, output: Path, seconds: float) -> None:
    """Write what is volatile beside the output, where no hash sees it."""
    record = {"stage": stage.name, **cost_of_process(seconds), "git_commit": git_commit(), "host": platform.node()}
    record["processors"] = os.cpu_count()
    run_record(output).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run_record(output: Path) -> Path:
    """Return where the record of the run that wrote an output lies."""
    return output.with_name(f"{output.name}.run.json")


def cost_of_process(seconds: float) -> dict[str, float]:
    """Return what this process and its children have used so far, ``seconds`` being its time on the clock."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "wall_seconds": round(seconds, 3),
        "processor_seconds": round(sum(usage.ru_utime + usage.ru_stime for usage in usages), 3),
        "peak_memory_mib": round(max(usage.ru_maxrss for usage in usages) / 1024, 1),
        "accelerator_seconds": round(seconds * accelerators_used(), 3),
    }
