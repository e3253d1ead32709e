"""Degradation at 512 px against a plain dense-kernel chain, in two processes, and in flat memory.

Times of the comparison are processor seconds of one core, so that a busy machine changes them little; each figure is
the best of some repeats, plain and fast in turn. Prints tables and writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from skimage import data
from threadpoolctl import threadpool_limits

from prefrestore import artifacts, configfile
from prefrestore.config import Section
from prefrestore.data.degradation import degrade
from prefrestore.data.images import encode_png
from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import Blur, DegradationRecord
from prefrestore.data.pairing import Pairing, make_pairs
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.data.resampling import correlate_resize, separate, trim
from prefrestore.data.tables import Face
from prefrestore.runtime.pool import ordered_map

SIZE = 512
MEMORY_SIZE = 32  # px of the images of the memory test: what must stay flat does not depend on it
PRESET = Path(__file__).parents[1] / "presets" / "smoke.yaml"
HOW = Pairing("pref_restore", "pref_restore", 1, 0)


def portrait(size: int) -> np.ndarray:
    """Return a licence-free portrait."""
    return cv2.resize(
        np.ascontiguousarray(data.astronaut()[0:256, 96:352]), (size, size), interpolation=cv2.INTER_CUBIC
    )


# --- one core -------------------------------------------------------------------------------------


def plain_small(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Blur and down-sample as published: float image, dense kernel, resize; on the scale of 0 to 1."""
    blur, small = record.operations[:2]
    blurred = cv2.filter2D(hq.astype(np.float32) / 255, -1, kernel_of(blur))  # type: ignore[arg-type]
    return cv2.resize(blurred, (small.width, small.height), interpolation=cv2.INTER_LINEAR)  # type: ignore[union-attr]


def plain_chain(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Return the LQ image by the published steps: blur, resize, noise, JPEG, resize, truncation."""
    noise, jpeg = record.operations[2:4]
    image = plain_small(hq, record)
    field = np.random.Generator(np.random.PCG64(noise.seed)).standard_normal(image.shape, np.float32)  # type: ignore[union-attr]
    image = np.clip(image + field * (noise.sigma / 255), 0, 1)  # type: ignore[union-attr]
    flags = [cv2.IMWRITE_JPEG_QUALITY, jpeg.quality]  # type: ignore[union-attr]
    _, coded = cv2.imencode(".jpg", np.rint(image[:, :, ::-1] * 255).astype(np.uint8), flags)
    image = np.float32(cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1]) / 255
    image = cv2.resize(image, hq.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def fast_small(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Blur and down-sample as the library does; on the scale of 0 to 255."""
    blur, small = record.operations[:2]
    return correlate_resize(hq, kernel_of(blur), small)  # type: ignore[arg-type]


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of some calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


@dataclass(frozen=True)
class Comparison:
    """The plain and the fast way of doing the same, means over records."""

    plain_ms: float
    fast_ms: float
    throughput_ratio: float
    ratios: tuple[float, float]  # that one record in ten stays below, and above
    max_difference: float  # levels of 255
    mean_difference: float


Way = Callable[[np.ndarray, DegradationRecord], np.ndarray]


def compare(
    hq: np.ndarray, records: Sequence[DegradationRecord], repeats: int, plain: Way, fast: Way, scale: float
) -> Comparison:
    """Measure two ways in turn; ``scale`` brings the plain result to levels of 255."""
    times = np.array(
        [
            (best_seconds(partial(plain, hq, one), max(2, repeats // 2)), best_seconds(partial(fast, hq, one), repeats))
            for one in records
        ]
    )
    differences = [np.abs(plain(hq, one) * scale - fast(hq, one)) for one in records]
    plain_time, fast_time = times.mean(0)
    return Comparison(
        plain_ms=1e3 * plain_time,
        fast_ms=1e3 * fast_time,
        throughput_ratio=plain_time / fast_time,
        ratios=tuple(np.quantile(times[:, 0] / times[:, 1], (0.1, 0.9))),
        max_difference=float(max(difference.max() for difference in differences)),
        mean_difference=float(np.mean([difference.mean() for difference in differences])),
    )


WHY = {
    "kernel": "drawn by its formula and written as outer products, anew for every image: no two are alike",
    "blur + down-sampling": "reads every pixel; then kernel side x outer products x LQ rows multiplications in BLAS",
    "noise": "as many normal numbers as LQ has values: the generator's own speed",
    "JPEG": "libjpeg-turbo on the LQ image, there and back",
    "up-sampling": "writes 512 x 512 x 3 floats and turns them to 8 bits: memory's own speed",
}


def what_is_left(hq: np.ndarray, records: Sequence[DegradationRecord], repeats: int) -> dict[str, float]:
    """Return milliseconds of each part of the fast chain, as the differences of ever longer chains."""
    rows = []
    for record in records:
        kernel = best_seconds(lambda blur=record.operations[0]: separate(trim(kernel_of(blur))), repeats)
        chains = [
            best_seconds(
                partial(degrade, hq, record.model_copy(update={"operations": record.operations[:end]})), repeats
            )
            for end in range(2, len(record.operations) + 1)
        ]
        rows.append(np.diff([0, kernel, *chains]))
    return dict(zip(WHY, 1e3 * np.mean(rows, axis=0), strict=True))


def by_kernel(hq: np.ndarray, records: Sequence[DegradationRecord], repeats: int) -> dict[str, dict[str, float]]:
    """Return outer products of the kernel and milliseconds of blur and down-sampling, per kind of kernel."""
    found = {}
    for kind in ("iso", "aniso"):
        blurs = [(record, record.operations[0]) for record in records]
        mine = [(record, blur) for record, blur in blurs if isinstance(blur, Blur) and blur.kernel == kind]
        found[kind] = {
            "outer_products": float(np.mean([len(separate(trim(kernel_of(blur)))[0]) for _, blur in mine])),
            "fast_ms": 1e3 * float(np.mean([best_seconds(partial(fast_small, hq, one), repeats) for one, _ in mine])),
        }
    return found


# --- two processes --------------------------------------------------------------------------------


def face_rows(count: int, size: int) -> list[Face]:
    """Return rows of ``faces`` that differ in their id alone."""
    image = encode_png(portrait(size))
    blank = Face("", "train", image, "", size, size, "", (), (), 1.0, "none", "", "")
    return [replace(blank, id=f"{number:08d}") for number in range(count)]


def clocked(face: Face) -> tuple[int, float, int]:
    """Make a face's pairs; return this process, its processor time so far, and the bytes made."""
    made = make_pairs(face, HOW)
    return os.getpid(), time.process_time(), sum(len(pair.image) for pair in made)


def rate(rows: Sequence[Face], workers: int) -> tuple[float, float]:
    """Return faces a second by the clock, and processor milliseconds a face of all processes; start-up left out."""
    clocks: dict[int, list[float]] = {}
    results = ordered_map(clocked, rows, workers=workers, batch=8)
    next(results)
    started, own = time.perf_counter(), time.process_time()
    for process, clock, _ in results:
        clocks.setdefault(process, []).append(clock)
    wall, own = time.perf_counter() - started, time.process_time() - own
    others = sum(times[-1] - times[0] for process, times in clocks.items() if process != os.getpid())
    return (len(rows) - 1) / wall, 1e3 * (own + others) / (len(rows) - 1)


def processes(count: int, repeats: int) -> dict[str, float]:
    """Return the best rates of one and two processes, taken in turn, and what they cost."""
    rows = face_rows(count, SIZE)
    turns = [(rate(rows, 1), rate(rows, 2)) for _ in range(repeats)]
    one, two = (max(turn[place][0] for turn in turns) for place in (0, 1))
    cost_one, cost_two = (min(turn[place][1] for turn in turns) for place in (0, 1))
    return {
        "1_per_second": one,
        "2_per_second": two,
        "ratio": two / one,
        "best_ratio_in_one_turn": max(turn[1][0] / turn[0][0] for turn in turns),
        "1_processor_ms": cost_one,
        "2_processor_ms": cost_two,
        "ratio_on_two_free_cores": 2 * cost_one / cost_two,
    }


# --- memory ---------------------------------------------------------------------------------------


def write_images(folder: Path, count: int) -> None:
    """Write Parquet shards of small images that all differ."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for start in range(0, count, 1000):
        some = min(1000, count - start)
        images = [encode_png(random.integers(0, 256, (MEMORY_SIZE, MEMORY_SIZE, 3), np.uint8)) for _ in range(some)]
        pq.write_table(pa.table({"image": images}), folder / f"images-{start:06d}.parquet")


WATCHED = """
import atexit
from pathlib import Path
from prefrestore.cli import main
def tell():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)
atexit.register(tell)
main()
"""


def peak_memory(stage: str, section: Section, **paths: Path) -> float:
    """Return the peak resident MiB of a process that runs a stage, as the program does."""
    ports = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    command = [sys.executable, "-c", WATCHED, "stage", stage, "--section", section.model_dump_json(), *ports]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout.splitlines()[-1])


def memory(count: int) -> dict[str, float]:
    """Return the peak memory of ingesting and of degrading ``count`` images."""
    preset = configfile.load(PRESET)
    ingest = {"source": "parquet", "aligned": True, "num_train": 0, "num_eval": 0, "split": "hash", "workers": 1}
    with tempfile.TemporaryDirectory() as name:
        images, faces, pairs = (Path(name) / part for part in ("images", "faces", "pairs"))
        write_images(images, count)
        took = preset.ingest.model_copy(update={**ingest, "uri": str(images), "shard_rows": 1000})
        made = preset.degrade.model_copy(update={"workers": 1, "variants": 1})
        return {
            "ingest": peak_memory("ingest", took, faces=faces),
            "degrade": peak_memory("degrade", made, faces=faces, pairs=pairs),
        }


# --- all of it ------------------------------------------------------------------------------------


def show_speed(figures: dict[str, Comparison], left: dict[str, float], kernels: dict[str, dict[str, float]]) -> None:
    """Print the comparison and what is left."""
    for name, row in figures.items():
        print(
            f"  {name:30} plain {row.plain_ms:6.2f}  fast {row.fast_ms:5.2f}  images/s {1e3 / row.fast_ms:5.0f}  "
            f"faster {row.throughput_ratio:4.1f}x ({row.ratios[0]:.1f}x to {row.ratios[1]:.1f}x)  "
            f"difference at most {row.max_difference:.2f} of 255, on average {row.mean_difference:.4f}"
        )
    print("  what is left of the fast chain, ms:")
    for name, spent in left.items():
        print(f"    {name:22} {spent:5.2f}  {WHY[name]}")
    for kind, row in kernels.items():
        print(f"    {kind:5} kernels: {row['outer_products']:.1f} outer products, {row['fast_ms']:.2f} ms")


def show_processes(pair: dict[str, float]) -> None:
    """Print the rates of one and two processes."""
    print(
        f"  faces a second with PNG coding: {pair['1_per_second']:.0f} in one process, {pair['2_per_second']:.0f} in "
        f"two: {pair['ratio']:.2f}x ({pair['best_ratio_in_one_turn']:.2f}x in the best turn)\n"
        f"  processor ms a face: {pair['1_processor_ms']:.2f} in one, {pair['2_processor_ms']:.2f} in two with all "
        f"their traffic: {pair['ratio_on_two_free_cores']:.2f}x on two free cores"
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=120, help="records compared")
    parser.add_argument("--repeats", type=int, default=15, help="of the fast way; best counts")
    parser.add_argument("--faces", type=int, default=240, help="faces of each turn of the comparison of processes")
    parser.add_argument("--turns", type=int, default=3, help="of that comparison; the best counts")
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 20000], help="numbers of images")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/degradation.json"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    threadpool_limits(1)
    hq = portrait(SIZE)
    records = [draw_record(recipe_named("pref_restore"), SIZE, 0, str(number)) for number in range(options.images)]
    print(f"pref_restore at {SIZE} px, {len(records)} records, milliseconds of one core; load {os.getloadavg()[0]:.1f}")
    figures = {
        "blur + down-sampling": compare(hq, records, options.repeats, plain_small, fast_small, 255.0),
        "whole chain (after JPEG)": compare(hq, records, options.repeats, plain_chain, degrade, 1.0),
    }
    left = what_is_left(hq, records, options.repeats)
    kernels = by_kernel(hq, records, options.repeats)
    show_speed(figures, left, kernels)
    pair = processes(options.faces, options.turns)
    show_processes(pair)
    peaks = {}
    for count in options.memory:
        peaks[str(count)] = memory(count)
        told = ", ".join(f"{stage} {peak:.0f} MiB" for stage, peak in peaks[str(count)].items())
        print(f"  peak resident memory of {count:>6} images: {told}", flush=True)
    found = {
        "speed": {name: asdict(row) for name, row in figures.items()},
        "left_ms": left,
        "kernels": kernels,
        "processes": pair,
        "memory_mib": peaks,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, json.loads(json.dumps(found)))


if __name__ == "__main__":
    main()
