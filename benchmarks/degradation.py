"""Degradation at 512 px against a plain dense-kernel chain, in two processes, and in flat memory.

Times of the comparison are processor seconds of one core, so that a busy machine changes them little; each figure is
the best of some repeats. Prints tables; ``--json`` writes the figures, ``--sheet`` a contact sheet of all recipes.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from skimage import data
from threadpoolctl import threadpool_limits

from prefrestore import artifacts
from prefrestore.data.degradation import degrade
from prefrestore.data.images import encode_png
from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.pairing import Pairing, make_pairs
from prefrestore.data.recipes import draw_record, recipe_named, recipes
from prefrestore.data.resampling import correlate_resize
from prefrestore.data.tables import FACE_SCHEMA, Face, ShardWriter, write_set_aside
from prefrestore.runtime.pool import ordered_map

SIZE = 512
SHEET_CELL = 192
MEMORY_SIZE = 64  # px of the images of the memory test: what must stay flat does not depend on it


def portrait(size: int) -> np.ndarray:
    """Return a licence-free portrait."""
    return cv2.resize(
        np.ascontiguousarray(data.astronaut()[0:256, 96:352]), (size, size), interpolation=cv2.INTER_CUBIC
    )


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


def compare(hq: np.ndarray, records: Sequence[DegradationRecord], repeats: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of the plain and the fast way, their ratio, and the largest difference in levels."""
    figures = {}
    for name, plain, fast, scale in (
        ("blur + down-sampling", plain_small, fast_small, 255),
        ("whole chain", plain_chain, degrade, 1),
    ):
        slow = [best_seconds(partial(plain, hq, record), max(2, repeats // 2)) for record in records]
        quick = [best_seconds(partial(fast, hq, record), repeats) for record in records]
        differences = [np.abs(plain(hq, one) * float(scale) - fast(hq, one)) for one in records]
        figures[name] = {
            "plain_ms": 1e3 * float(np.mean(slow)),
            "fast_ms": 1e3 * float(np.mean(quick)),
            "throughput_ratio": float(np.mean(slow) / np.mean(quick)),
            "mean_of_ratios": float(np.mean(np.array(slow) / np.array(quick))),
            "max_difference": float(max(difference.max() for difference in differences)),
            "mean_difference": float(np.mean([difference.mean() for difference in differences])),
        }
    return figures


def face_rows(count: int, size: int) -> list[Face]:
    """Return rows of ``faces`` that differ in their id alone."""
    image = encode_png(portrait(size))
    blank = Face("", "train", image, "", size, size, "", (), (), 1.0, "none", "", "")
    return [dataclasses.replace(blank, id=f"{number:08d}") for number in range(count)]


def processes(count: int) -> dict[str, float]:
    """Return faces a second with one and with two processes, start-up left out."""
    how = partial(make_pairs, how=Pairing("pref_restore", "pref_restore", 1, 0))
    rows = face_rows(count, SIZE)
    rates = {}
    for workers in (1, 2):
        results = ordered_map(how, rows, workers=workers, batch=8)
        next(results)
        started = time.perf_counter()
        for _ in results:
            pass
        rates[f"{workers}_per_second"] = (count - 1) / (time.perf_counter() - started)
    return {**rates, "ratio": rates["2_per_second"] / rates["1_per_second"]}


MEASURE = """
import sys
from pathlib import Path
from prefrestore.config import DegradeConfig
from prefrestore.stages.degrade import run
faces, pairs = map(Path, sys.argv[1:])
run(DegradeConfig(recipe="pref_restore", eval_recipe="pref_restore", variants=1, shard_index=0, shard_count=1, seed=0,
                  workers=1), faces=faces, pairs=pairs)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def peak_memory(count: int) -> float:
    """Return the peak resident MiB of a process that degrades ``count`` faces."""
    with tempfile.TemporaryDirectory() as name:
        faces, pairs = Path(name) / "faces", Path(name) / "pairs"
        faces.mkdir()
        pairs.mkdir()
        writer = ShardWriter(faces, "faces", FACE_SCHEMA, 1000)
        for row in face_rows(count, MEMORY_SIZE):
            writer.add(row)
        writer.close()
        write_set_aside(faces, [], {"train": count, "eval": 0})
        command = [sys.executable, "-c", MEASURE, str(faces), str(pairs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def contact_sheet(path: Path) -> None:
    """Write every recipe at three severities, two samples each, beside the original."""
    hq = portrait(SIZE)
    rows = []
    for name, recipe in recipes().items():
        images = [hq]
        for severity in ("mild", "moderate", "severe"):
            records = [draw_record(recipe, SIZE, 1, str(sample), severity) for sample in range(2)]  # type: ignore[arg-type]
            images += [degrade(hq, record) for record in records]
        cells = [cv2.resize(image, (SHEET_CELL, SHEET_CELL), interpolation=cv2.INTER_AREA) for image in images]
        row = np.concatenate(cells, axis=1)
        cv2.putText(row, name, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1)
        rows.append(row)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=120, help="records compared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 20000], help="numbers of faces")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) too")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    threadpool_limits(1)
    records = [draw_record(recipe_named("pref_restore"), SIZE, 0, str(number)) for number in range(options.images)]
    figures = compare(portrait(SIZE), records, options.repeats)
    print(f"pref_restore at {SIZE} px, {len(records)} records, milliseconds of one core")
    for name, row in figures.items():
        print(
            f"  {name:22} plain {row['plain_ms']:6.2f}  fast {row['fast_ms']:6.2f}  "
            f"images/s {1e3 / row['fast_ms']:6.1f}  faster {row['throughput_ratio']:5.1f}x "
            f"(mean of ratios {row['mean_of_ratios']:.1f}x)  difference at most {row['max_difference']:.2f}, "
            f"on average {row['mean_difference']:.4f} levels"
        )
    pair = processes(400)
    print(
        f"  with PNG coding, faces a second: {pair['1_per_second']:.0f} in one process, "
        f"{pair['2_per_second']:.0f} in two: {pair['ratio']:.2f}x"
    )
    memory = {str(count): peak_memory(count) for count in options.memory}
    for count, peak in memory.items():
        print(f"  peak memory of degrading {count:>6} faces: {peak:.0f} MiB")
    if options.sheet:
        contact_sheet(options.sheet)
    if options.json:
        artifacts.write_json(options.json, {"speed": figures, "processes": pair, "memory_mib": memory})


if __name__ == "__main__":
    main()
