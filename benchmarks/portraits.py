"""Speed of the procedural portraits on one core, and a contact sheet to look at.

python benchmarks/portraits.py [--size 128] [--count 200] [--json out.json] [--sheet sheet.png]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from prefrestore.data.portraits import render

REPEATS = 3


def measure(size: int, count: int, seed: int) -> dict[str, float]:
    """Return images a second by the clock and by this process's CPU time: best of three passes, caches warm."""
    for index in range(min(count, 60)):
        render(index, size, seed)
    wall, busy = [], []
    for _ in range(REPEATS):
        start, start_busy = time.perf_counter(), time.process_time()
        for index in range(count):
            render(index, size, seed)
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return {"images_per_second": count / min(wall), "images_per_cpu_second": count / min(busy)}


def contact_sheet(size: int, count: int, seed: int, columns: int = 10) -> np.ndarray:
    """Return the first `count` portraits side by side, uint8 RGB."""
    images = [render(index, size, seed).image for index in range(count)]
    images += [np.zeros_like(images[0])] * (-count % columns)
    rows = [np.concatenate(images[start : start + columns], axis=1) for start in range(0, len(images), columns)]
    return np.concatenate(rows)


def main() -> None:
    """Print images a second on one core, per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", dest="sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--count", type=int, default=200, help="portraits per pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of 100 portraits at 128 px here, and stop")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.sheet is not None:
        Image.fromarray(contact_sheet(128, 100, options.seed)).save(options.sheet)
        return
    figures = {str(size): measure(size, options.count, options.seed) for size in options.sizes}
    for size, row in figures.items():
        clock, busy = row["images_per_second"], row["images_per_cpu_second"]
        print(f"{size:>4} px  {clock:7.1f} images/s  {busy:7.1f} images/CPU-second")
    if options.json is not None:
        report = {"count": options.count, "seed": options.seed, "by_size": figures}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
