"""Speed of the procedural portraits on one core, and a contact sheet to look at.

    python benchmarks/portraits.py [--size 128] [--count 200] [--json out.json] [--sheet sheet.png]
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import json
import time
from pathlib import Path

import click
import cv2
import numpy as np
from PIL import Image

from prefrestore.data.portraits import render

REPEATS = 3


def measure(size: int, count: int, seed: int) -> dict[str, float]:
    """Return images a second by the wall clock and by this process's CPU time: the best of three passes, caches warm."""
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


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, default=(32, 64, 128, 256), show_default=True)
@click.option("--count", default=200, show_default=True, help="Portraits per pass.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet of 100 at 128 px here and stop.")
def main(sizes: tuple[int, ...], count: int, seed: int, json_path: Path | None, sheet: Path | None) -> None:
    """Print images a second on one core, per size."""
    cv2.setNumThreads(1)
    if sheet is not None:
        Image.fromarray(contact_sheet(128, 100, seed)).save(sheet)
        return
    figures = {str(size): measure(size, count, seed) for size in sizes}
    for size, row in figures.items():
        print(f"{size:>4} px  {row['images_per_second']:7.1f} images/s  {row['images_per_cpu_second']:7.1f} images/CPU-second")
    if json_path is not None:
        json_path.write_text(json.dumps({"count": count, "seed": seed, "by_size": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
