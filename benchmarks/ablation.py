"""Which of our changes to the published design help: equal steps, equal data, one table. Resumes where it was stopped.

Arms: the reference design (the published behaviour, as far as a small model from scratch can have it), it with one
change each, all changes, and all but the corrector, which needs the spatial path. Measured on the evaluation split,
beside LQ and the codec's round trip.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import plainly
import torch
from diffusers import AutoencoderDC

from prefrestore import artifacts, configfile
from prefrestore.config import PretrainConfig
from prefrestore.data.pairs import PairSet, load_pairs
from prefrestore.evaluation.columns import (
    Column,
    Sampling,
    codec_column,
    encode_conditions,
    lq_column,
    sampled_column,
)
from prefrestore.evaluation.metrics import ms_ssim, psnr
from prefrestore.faces.analysis import FaceAnalyser, FaceAnalysis
from prefrestore.faces.identity import identity_similarity
from prefrestore.faces.landmarks import landmark_distance
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.sft.pretrain import build_pipeline, pretrain

METRICS = ("psnr", "ms_ssim", "identity_similarity", "landmark_distance")
HQ_IDS = {"hq": 1.0, "generated": 0.0, "corrupted": 0.0}
REFERENCE: Mapping[str, Any] = {
    "integrator": {"text_first": False},
    "generator": {"spatial_path": False, "condition_position": False, "query_path": False, "text_modulation": False},
    "condition_ids": {"start": HQ_IDS, "end": HQ_IDS},
    "lq_corrector": 0,
    "query_span": "last_of_padded",
    "prompt_loss": True,
    "text_only": 0.0,
    "lq_dropout": 0.0,
}
"""What the published code does where the preset does otherwise."""
SINGLE = ("exact span", "masked prompt", "query path", "spatial path", "condition position", "generated ids")
REFERENCE_ARM, ALL, UNCORRECTED = "reference design", "all changes", "all but corrector"


@dataclass(frozen=True)
class Run:
    """One training: an arm and a seed."""

    arm: str
    seed: int


def changes_of(arm: str, preset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an arm changes in the preset: the reference's values, but for the named change."""
    if arm in (ALL, UNCORRECTED):
        return {} if arm == ALL else {"lq_corrector": 0}
    own: dict[str, Mapping[str, Any]] = {
        REFERENCE_ARM: {},
        "spatial path": {"generator": {**REFERENCE["generator"], "spatial_path": True}},
        "query path": {"generator": {**REFERENCE["generator"], "query_path": True}},
        "condition position": {"generator": {**REFERENCE["generator"], "condition_position": True}},
        "generated ids": {"condition_ids": preset["condition_ids"]},
        "exact span": {"query_span": "exact"},
        "masked prompt": {"prompt_loss": False},
    }
    return {**REFERENCE, **own[arm]}


def config_of(run: Run, preset: PretrainConfig, steps: Sequence[int]) -> PretrainConfig:
    """Return a run's whole configuration."""
    values = preset.model_dump()
    for name, change in changes_of(run.arm, values).items():
        values[name] = {**values[name], **change} if isinstance(change, Mapping) else change
    values["seed"] = 1000 + run.seed
    for step, count in zip(("step1", "step2"), steps, strict=True):
        values[step]["steps"] = count
    return PretrainConfig.model_validate(values)


def runs(seeds: int) -> list[Run]:
    """Return all runs; the ones that say most come first."""
    both = [Run(arm, seed) for seed in range(seeds) for arm in (REFERENCE_ARM, ALL)]
    return [*both[:2], *(Run(arm, 0) for arm in (UNCORRECTED, *SINGLE)), *both[2:]]


class Bench:
    """The data, and how restorations are measured."""

    def __init__(self, pairs: Path, codec: Path) -> None:
        self.inputs = {"pairs": pairs, "codec": codec}
        self.train, self.held_out = load_pairs(pairs, "train"), load_pairs(pairs, "eval")
        self._analyse = FaceAnalyser(1)
        self._hq = self._analyse(self.held_out.hq, self.held_out.landmarks)

    def measure(self, column: Column) -> dict[str, float]:
        """Return the means over faces and samples."""
        rows = [self._of(images) for images in column.samples]
        return {name: fmean(row[name] for row in rows) for name in METRICS}

    def _of(self, images: np.ndarray) -> dict[str, float]:
        pairs: PairSet = self.held_out
        seen: FaceAnalysis = self._analyse(images, pairs.landmarks)
        both = list(zip(images, pairs.hq, strict=True))
        return {
            "psnr": fmean(psnr(a, b) for a, b in both),
            "ms_ssim": fmean(ms_ssim(a, b) for a, b in both),
            "identity_similarity": float(np.nanmean(identity_similarity(seen.embeddings, self._hq.embeddings))),
            "landmark_distance": float(np.nanmean(landmark_distance(seen.landmarks, self._hq.landmarks))),
        }

    def pipeline(self, config: PretrainConfig) -> PrefRestorePipeline:
        """Return an untrained restorer around the trained codec."""
        codec = AutoencoderDC.from_pretrained(self.inputs["codec"] / "codec").eval()
        tokenizer = ImageTokenizer.from_pretrained(self.inputs["codec"] / "tokenizer").eval()
        return build_pipeline(config, codec, tokenizer, self.train)

    def train_and_measure(self, config: PretrainConfig, folder: Path) -> dict[str, float]:
        """Train one arm and measure two samples of every held-out face."""
        pipeline = self.pipeline(config)
        places = [Checkpoints(f"step{number}", config, self.inputs, folder) for number in (1, 2)]
        trained = pretrain(config, pipeline, self.train, *places)
        conditions = encode_conditions(pipeline, self.held_out, 16)
        sampling = Sampling(2, config.sampler_steps, 16, 0)
        column = sampled_column("restored", pipeline, conditions, self.held_out, sampling)
        return {**self.measure(column), "id_accuracy": trained.id_accuracy}


def finished(run: Run, config: PretrainConfig, bench: Bench, folder: Path) -> dict[str, float]:
    """Return a run's figures: those on disk if configuration and data are the same, else after training it."""
    digests = {name: artifacts.digest(path) for name, path in bench.inputs.items()}
    key = {"config": config.identity(), "inputs": digests}
    name = sha256(artifacts.canonical_json(key).encode()).hexdigest()[:12]
    path = folder / f"{run.arm.replace(' ', '-')}-{run.seed}-{name}.json"
    if path.exists():
        return artifacts.read_json(path)["figures"]
    print(f"== {run.arm}, seed {run.seed}", flush=True)
    figures = bench.train_and_measure(config, folder / "checkpoints")
    artifacts.write_json(path, {**key, "figures": figures})
    return figures


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return rows of mean and, where there are several seeds, standard deviation over them."""
    lines = [f"{'':<20}{'runs':>5}" + "".join(f"{name:>24}" for name in METRICS)]
    for arm, rows in found.items():
        cells = []
        for name in METRICS:
            values = [row[name] for row in rows]
            spread = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}".rjust(24))
        lines.append(f"{arm:<20}{len(rows):>5}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Run what is not finished and print the table after every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, default=Path("artifacts/pairs"))
    parser.add_argument("--codec", type=Path, default=Path("artifacts/codec"))
    parser.add_argument("--preset", type=Path, default=Path("presets/tiny.yaml"))
    parser.add_argument("--steps", type=int, nargs=2, default=(80, 240), help="of step 1 and step 2, for every arm")
    parser.add_argument("--seeds", type=int, default=3, help="of the reference design and of all changes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/ablation"), help="finished runs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ablation.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    preset = configfile.load_section(options.preset, "pretrain", PretrainConfig)
    bench = Bench(options.pairs, options.codec)
    ceiling = codec_column(bench.pipeline(preset), bench.held_out, 16)
    found = {"lq": [bench.measure(lq_column(bench.held_out))], "codec round trip": [bench.measure(ceiling)]}
    for run in runs(options.seeds):
        config = config_of(run, preset, options.steps)
        found.setdefault(run.arm, []).append(finished(run, config, bench, options.folder))
        print(table(found), flush=True)
    faces = {"train": len(bench.train.ids), "eval": len(bench.held_out.ids)}
    artifacts.write_json(options.json, {"steps": list(options.steps), "faces": faces, "arms": found})


if __name__ == "__main__":
    plainly.run(main)
