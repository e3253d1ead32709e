"""The studio in a process of its own, and candidates for its vote page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from skimage import data

from prefrestore.data.images import encode_png
from prefrestore.data.preferences import INPUTS
from prefrestore.reward_model.candidates import INPUT_SCHEMA, Origin, make_candidate, write_candidates
from support.net import free_port

OPENED = re.compile(r"open (http://\S+)")


def blurred_candidates(folder: Path, faces: int, size: int, blurs: Sequence[float]) -> Path:
    """Write blurs of crops, ``size`` pixels a side, of one public-domain portrait; every crop is another face."""
    portrait = cv2.resize(np.ascontiguousarray(data.astronaut()[0:220, 120:340]), (size, size))
    rows, inputs = [], []
    for face in range(faces):
        hq = np.roll(portrait, (face // 8, 4 * (face % 8)), axis=(0, 1))
        rows += [
            make_candidate(f"face{face}", 0, cv2.GaussianBlur(hq, (0, 0), blur), Origin(number, 4, "base"))
            for number, blur in enumerate(blurs)
        ]
        lq = encode_png(cv2.GaussianBlur(hq, (0, 0), 5))
        inputs.append({"group_id": f"face{face}/0", "text": "", "image": lq})
    write_candidates(folder, rows)
    pq.write_table(pa.Table.from_pylist(inputs, schema=INPUT_SCHEMA), folder / INPUTS)
    return folder


def small_candidates(folder: Path) -> Path:
    """Write three blurs of each of eight crops: 24 pairs."""
    return blurred_candidates(folder, 8, 96, (0.5, 1.5, 3.0))


@contextmanager
def studio(*arguments: str | Path, log: Path, **environment: str) -> Iterator[str]:
    """Run ``prefrestore studio`` on a free port and yield its address."""
    command = [sys.executable, "-m", "prefrestore", "studio", "--port", str(free_port()), *map(str, arguments)]
    environment = {**os.environ, **environment}
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        if found := OPENED.search(log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise AssertionError(log.read_text())
