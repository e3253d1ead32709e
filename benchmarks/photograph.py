"""What a photograph costs, cold and warm, part by part; quality against steps; the trade-off of ``--fidelity``.

Speed is measured on scikit-image's public-domain portrait, made soft. Quality needs ``--faces``, a folder of good
photographs (``val/`` is taken if there is one): they are degraded by a recipe and restored. Prints tables, writes JSON.
Run it where nothing else runs: threads of torch that wait for a core that another process has cost many times the work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import plainly
import torch
from side_by_side import random_restorer
from skimage import data

from prefrestore import artifacts
from prefrestore.data.images import encode_png
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.data.photographs import Photograph
from prefrestore.data.recipes import recipe_named
from prefrestore.evaluation.metrics import high_band_energy, psnr, sharpness
from prefrestore.evaluation.outside import Freezing, frozen_pairs
from prefrestore.evaluation.restorer import Drawing, draw
from prefrestore.faces.alignment import crop, ffhq_square
from prefrestore.faces.analysis import FaceAnalyser
from prefrestore.faces.detection import find_faces, find_landmarks
from prefrestore.faces.identity import identity_similarity
from prefrestore.faces.paste import match_colours, paste
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.shipped import SHIPPED, shipped_address
from prefrestore.serving.photograph import SAMPLES, Wishes, between, restore_photograph

GOAL = 1.5
"""Seconds a face, warm, on two cores."""
STEPS, FIDELITIES = (1, 2, 4, 6, 8, 12, 16), (0.0, 0.25, 0.5, 0.75, 1.0)
Figures = Mapping[str, float]


def soft_photograph() -> np.ndarray:
    """Return one public-domain photograph of a person, too soft, [512, 512, 3]."""
    return cv2.GaussianBlur(np.ascontiguousarray(data.astronaut()), (0, 0), 4)


def model_of(address: str | None) -> tuple[PrefRestorePipeline, str]:
    """Return the model and its address; without any weights a random one of preset portrait: its speed is the same."""
    if address is None and not SHIPPED.is_dir():
        print("no weights ship with this copy: a random model of preset portrait, for speed alone")
        return random_restorer("portrait", 128, quick=False), ""
    address = address or shipped_address()
    return load(locate(resolve(address, "sqlite:///mlflow.db"))), address


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of processors; the second says what the first would be on an idle machine."""

    clock: float
    processor: float


def cost_of(run: Callable[[], object], repeats: int) -> Cost:
    """Return the least that a run costs, after one to warm up: what else runs here only adds."""
    run()
    costs = []
    for _ in range(repeats):
        start, busy = time.perf_counter(), _busy()
        run()
        costs.append(Cost(time.perf_counter() - start, _busy() - busy))
    return Cost(min(cost.clock for cost in costs), min(cost.processor for cost in costs))


def _busy() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def told_cost(name: str, cost: Cost, whole: Cost | None = None) -> dict[str, float]:
    """Print one row, and return it."""
    share = f"{cost.processor / whole.processor:6.1%}" if whole else ""
    print(f"  {name:<10} {1000 * cost.clock:8.1f} ms  {1000 * cost.processor:8.1f} ms of processors  {share}")
    return asdict(cost)


@torch.no_grad()
def budget(pipeline: PrefRestorePipeline, photograph: np.ndarray, repeats: int) -> dict[str, Figures]:
    """Print and return what each part of one face costs, and the whole, seconds."""
    box = find_faces(photograph)[0]
    square = ffhq_square(find_landmarks(photograph, box))
    face = crop(photograph, square, pipeline.image_size)
    lq, noise = to_tensor(face[None]), pipeline.initial_noise([0])
    condition = pipeline.prepare(pipeline.encode_condition(lq, [""]))
    latents = pipeline.sample(condition, noise)
    parts: Mapping[str, Callable[[], object]] = {
        "detect": lambda: [find_landmarks(photograph, found) for found in find_faces(photograph)],
        "align": lambda: crop(photograph, square, pipeline.image_size),
        "condition": lambda: pipeline.prepare(pipeline.encode_condition(lq, [""])),
        "generate": lambda: pipeline.sample(condition, noise),
        "decode": lambda: pipeline.decode(latents),
        "paste": lambda: paste(photograph, match_colours(face, face), square),
    }
    costs = {name: cost_of(run, repeats) for name, run in parts.items()}
    plain, compared = (
        Wishes(Drawing(samples, None, 0), fidelity, every_face=True)
        for samples, fidelity in ((0, None), (SAMPLES, 1.0))
    )
    whole, several = (
        cost_of(lambda wishes=wishes: restore_photograph(pipeline, Photograph(photograph), wishes), repeats)
        for wishes in (plain, compared)
    )
    rows = {name: told_cost(name, cost, whole) for name, cost in costs.items()}
    rows["warm"] = told_cost("warm", whole, whole)
    rows["compared"] = told_cost("compared", several, whole)
    print(f"  goal of {GOAL:g} s warm: {'met' if whole.clock <= GOAL else 'NOT MET'}; compared: {SAMPLES} samples")
    return rows


def cold(address: str, photograph: np.ndarray, repeats: int) -> Figures:
    """Print and return the cost from the shell's prompt to the written file."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.png"
        source.write_bytes(encode_png(photograph))
        command = [sys.executable, "-m", "prefrestore", "restore", str(source), "-o", f"{name}/out.png", "--force"]
        command += ["--model", address, "--every-face"]
        cost = cost_of(lambda: subprocess.run(command, check=True, capture_output=True), repeats)
    print("with the start of Python, imports, weights checked and loaded:")
    return told_cost("cold", cost)


class Scale:
    """Measures restorations of frozen pairs: mean and standard error over faces."""

    def __init__(self, pairs: PairSet) -> None:
        self._pairs, self._see = pairs, FaceAnalyser(1)
        self._energies = [high_band_energy(image) for image in pairs.hq]
        self._hq = self._see(pairs.hq, pairs.landmarks, with_landmarks=False).embeddings

    def __call__(self, restored: np.ndarray) -> dict[str, tuple[float, float]]:
        """Return psnr, identity and sharpness of pictures [N, H, W, 3] uint8, one of each face."""
        seen = self._see(restored, self._pairs.landmarks, with_landmarks=False).embeddings
        values = {
            "psnr": [psnr(a, b) for a, b in zip(restored, self._pairs.hq, strict=True)],
            "identity": identity_similarity(seen, self._hq),
            "sharpness": [sharpness(image, energy) for image, energy in zip(restored, self._energies, strict=True)],
        }
        return {name: _mean(np.asarray(row, np.float64)) for name, row in values.items()}


def _mean(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5)


def told(name: str, found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Print one row, and return its means and standard errors."""
    cells = (f"{key} {mean:7.3f} (+- {error:.3f})" for key, (mean, error) in found.items())
    print(f"  {name:<14} " + "   ".join(cells))
    return {key: mean for key, (mean, _) in found.items()} | {f"{key}_se": error for key, (_, error) in found.items()}


def first(pairs: PairSet, count: int) -> PairSet:
    """Return the first pairs."""
    return PairSet(*(getattr(pairs, field.name)[:count] for field in fields(pairs)))


def by_steps(pipeline: PrefRestorePipeline, pairs: PairSet, steps: Sequence[int]) -> dict[str, Figures]:
    """Print and return quality and seconds a face of one sample, against the number of sampling steps."""
    scale, rows = Scale(pairs), {}
    print(f"one sample of {len(pairs.ids)} faces by number of steps (the model's own: {pipeline.sampler_steps})")
    told("degraded", scale(pairs.lq[:, 0]))
    for number in steps:
        start = time.perf_counter()
        drawn = [draw(pipeline, image, Drawing(0, number, 0)).restoration for image in pairs.lq[:, 0]]
        seconds = (time.perf_counter() - start) / len(drawn)
        row = told(f"{number} steps", scale(np.stack(drawn)))
        print(f"  {'':<14} {1000 * seconds:.0f} ms a face")
        rows[str(number)] = {**row, "seconds": seconds}
    return rows


def by_fidelity(pipeline: PrefRestorePipeline, pairs: PairSet, fidelities: Sequence[float]) -> dict[str, Figures]:
    """Print and return the trade-off of ``--fidelity``: from one sample to the mean of all."""
    scale = Scale(pairs)
    print(f"--fidelity, {SAMPLES} samples of {len(pairs.ids)} faces")
    drawn = [draw(pipeline, image, Drawing(SAMPLES, None, 0)).samples for image in pairs.lq[:, 0]]
    rows = {}
    for fidelity in fidelities:
        pictures = np.stack([between(samples, fidelity) for samples in drawn])
        rows[f"{fidelity:g}"] = told(f"fidelity {fidelity:g}", scale(pictures))
    return rows


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as of `prefrestore restore`; by default the weights that ship")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--faces", type=Path, help="folder of good photographs, to measure quality")
    parser.add_argument("--count", type=int, default=50, help="faces taken")
    parser.add_argument("--recipe", default="pref_restore")
    parser.add_argument("--severity", choices=["mild", "moderate", "severe"], default="moderate")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--fidelities", type=float, nargs="+", default=FIDELITIES)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/photograph.json"))
    return parser.parse_args()


def main() -> None:
    """Measure."""
    options = parsed()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    pipeline, address = model_of(options.model)
    print(f"one face at {pipeline.image_size} px, {pipeline.sampler_steps} steps, {options.threads} thread(s)")
    results: dict[str, object] = {"seconds": budget(pipeline, soft_photograph(), options.repeats)}
    if address:
        results["cold"] = cold(address, soft_photograph(), min(3, options.repeats))
    if options.faces and address:
        recipe = recipe_named(options.recipe).model_copy(update={"severity": options.severity})
        pairs, _ = frozen_pairs(options.faces, Freezing(pipeline.image_size, recipe, 0, 1))
        pairs = first(pairs, options.count)
        print(f"recipe {options.recipe}, {options.severity}")
        results["steps"] = by_steps(pipeline, pairs, options.steps)
        results["fidelity"] = by_fidelity(pipeline, pairs, options.fidelities)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, results)


if __name__ == "__main__":
    plainly.run(main)
