"""How many faces a second each metric measures, and a whole 50-face, 8-sample evaluation. Prints tables and JSON."""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from prefrestore import artifacts, configfile
from prefrestore.config import EvaluateConfig
from prefrestore.data.degradation import degrade
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.evaluation.assessment import assess
from prefrestore.evaluation.columns import Column, bicubic_column, lq_column
from prefrestore.evaluation.metrics import high_band_energy, ms_ssim, psnr, sharpness, ssim
from prefrestore.evaluation.niqe import fit_natural_model, niqe
from prefrestore.evaluation.report import Origin, render
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.faces.geometry import rescale_points, to_frame
from prefrestore.faces.identity import embed
from prefrestore.faces.landmarks import predict_landmarks
from prefrestore.models.lpips import Lpips
from prefrestore.rewards.composite import CompositeReward, Part
from prefrestore.rewards.faces import FaceReader, IdentityReward
from prefrestore.rewards.structure import StructureReward

LIMIT_SECONDS = 300.0
FACES, SAMPLES = 50, 8


def pairs_of_one_portrait(count: int, size: int) -> PairSet:
    """Return pairs of one public-domain portrait in ``count`` lights, with its landmarks."""
    whole = np.ascontiguousarray(data.astronaut()[0:256, 96:352])
    shape = shape_predictor()(whole, face_detector()(whole, 1)[0])
    points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
    face = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
    hq = np.stack([np.clip(face * light, 0, 255).astype(np.uint8) for light in np.linspace(0.6, 1.2, count)])
    ids = tuple(f"{number:03}" for number in range(count))
    records = [draw_record(recipe_named("pref_restore"), size, 0, name) for name in ids]
    lq = np.stack([degrade(image, record) for image, record in zip(hq, records, strict=True)])
    landmarks = np.tile(rescale_points(points, size / 256).astype(np.float32), (count, 1, 1))
    return PairSet(ids, ("",) * count, hq, lq[:, None], tuple((record,) for record in records), landmarks)


def rate(work: Callable[[int], object], rows: Iterable[int]) -> float:
    """Return how often ``work`` runs per second of processor time, after one call to warm up."""
    work(0)
    started, count = time.process_time(), 0
    for row in rows:
        work(row)
        count += 1
    return count / (time.process_time() - started)


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def metric_rates(pairs: PairSet) -> dict[str, float]:
    """Return faces a second of each metric on one core, HQ's side computed before."""
    hq, restored = pairs.hq, pairs.lq[:, 0]
    energies, model = [high_band_energy(image) for image in hq], fit_natural_model(hq)
    frames = [to_frame(image, points) for image, points in zip(restored, pairs.landmarks, strict=True)]
    work: dict[str, Callable[[int], object]] = {
        "psnr": lambda row: psnr(restored[row], hq[row]),
        "ssim": lambda row: ssim(restored[row], hq[row]),
        "ms_ssim": lambda row: ms_ssim(restored[row], hq[row]),
        "sharpness": lambda row: sharpness(restored[row], energies[row]),
        "niqe": lambda row: niqe(restored[row], model),
        "lq_consistency": lambda row: psnr(degrade(restored[row], pairs.records[row][0]), pairs.lq[row, 0]),
        "identity (dlib)": lambda row: embed(frames[row]),
        "landmarks (dlib)": lambda row: predict_landmarks(frames[row]),
    }
    rates = {name: rate(function, range(min(20, len(hq)))) for name, function in work.items()}
    return {**rates, **lpips_rates(hq, restored)}


@torch.no_grad()
def lpips_rates(hq: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    """Return faces a second of LPIPS, HQ's features computed before and anew; weights of any value cost the same."""
    network, reference, images = Lpips().eval(), to_tensor(hq[:1]), to_tensor(restored)
    known = list(network.features(reference))
    return {
        "lpips": rate(lambda row: network.distance(network.features(images[row : row + 1]), known), range(5)),
        "lpips, HQ anew": rate(lambda row: network(images[row : row + 1], reference), range(5)),
    }


def whole_evaluation(pairs: PairSet, preset: Path, workers: int) -> dict[str, float]:
    """Return the seconds of measuring and reporting all columns, and processor time; drawing is no part of it."""
    section = replace_workers(configfile.load_section(preset, "evaluate", EvaluateConfig), workers)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (SAMPLES, *pairs.hq.shape))
    base, policy = (np.clip(pairs.hq + scale * noise, 0, 255).astype(np.uint8) for scale in (1.0, 0.7))
    baseline = Column("baseline", np.stack([cv2.GaussianBlur(image, (0, 0), 1) for image in pairs.lq[:, 0]])[None])
    columns = [lq_column(pairs), bicubic_column(pairs), baseline, Column("base", base), Column("policy", policy)]
    reader = FaceReader(workers)
    statistics = {"structure": Part(1.0, 0.5, 0.1), "identity": Part(1.0, 0.5, 0.1)}
    started, used = time.perf_counter(), processor_seconds()
    with CompositeReward([StructureReward(), IdentityReward(reader)], statistics, reader) as reward:
        found = assess([*columns, Column("codec", pairs.hq[None])], pairs, reward, section, Lpips().eval())
    measured = time.perf_counter()
    counts = {"train": 0, "eval": len(pairs.ids), "rejected": 0, "reasons": {}}
    render(found, Origin([], counts), section.faces_shown)
    seconds = {"measure": measured - started, "report": time.perf_counter() - measured}
    return {**seconds, "processor": processor_seconds() - used}


def replace_workers(section: EvaluateConfig, workers: int) -> EvaluateConfig:
    """Return the section with another number of processes."""
    return section.model_copy(update={"workers": workers})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the images, pixels")
    parser.add_argument("--faces", type=int, default=FACES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--preset", type=Path, default=Path("presets/portrait.yaml"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evaluate.json"))
    options = parser.parse_args()
    pairs = pairs_of_one_portrait(options.faces, options.size)
    rates = metric_rates(pairs)
    print(f"{'metric':<20} {'faces a CPU-second':>18}   ({options.size} px)")
    for name, value in rates.items():
        print(f"{name:<20} {value:18.1f}")
    seconds = whole_evaluation(pairs, options.preset, options.workers)
    total = seconds["measure"] + seconds["report"]
    print(f"\n{options.faces} faces x {SAMPLES} samples x 2 models, {options.workers} processes")
    allowed = LIMIT_SECONDS * options.workers
    told = {**seconds, "wall": total, "limit of wall": LIMIT_SECONDS, "limit of processor": allowed}
    for name, value in told.items():
        print(f"{name:<20} {value:16.1f} s")
    for name, value, limit in (("wall", total, LIMIT_SECONDS), ("processor", seconds["processor"], allowed)):
        print(f"{name}: {'within' if value <= limit else 'over'} the limit, {value / limit:.2f} of it")
    print(f"load {os.getloadavg()[0]:.1f}: on a busy machine only the processor time says much")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    setting = {"size": options.size, "faces": options.faces, "samples": SAMPLES, "workers": options.workers}
    artifacts.write_json(options.json, {**setting, "faces_a_second": rates, "seconds": seconds, "limit": LIMIT_SECONDS})


if __name__ == "__main__":
    main()
