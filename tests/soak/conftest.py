"""A model and candidates that the tests of services share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data

from prefrestore.data.images import encode_png
from prefrestore.data.preferences import INPUTS
from prefrestore.reward_model.candidates import INPUT_SCHEMA, Origin, make_candidate, write_candidates
from support import served

FACES, BLURS = 60, (0.5, 1.0, 1.5, 2.0, 3.0)


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory, empty_registry: bytes, repository: Path) -> Path:
    """A registry with two versions of a restorer."""
    return served.fill_registry(tmp_path_factory.mktemp("served"), repository, empty_registry)


@pytest.fixture(scope="session")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blurs of each of sixty crops of one public-domain portrait: 600 pairs."""
    folder = tmp_path_factory.mktemp("candidates")
    portrait = cv2.resize(np.ascontiguousarray(data.astronaut()[0:220, 120:340]), (48, 48))
    rows, inputs = [], []
    for face in range(FACES):
        hq = np.roll(portrait, (face // 8, 4 * (face % 8)), axis=(0, 1))
        rows += [
            make_candidate(f"face{face}", 0, cv2.GaussianBlur(hq, (0, 0), blur), Origin(number, 4, "base"))
            for number, blur in enumerate(BLURS)
        ]
        lq = encode_png(cv2.GaussianBlur(hq, (0, 0), 5))
        inputs.append({"group_id": f"face{face}/0", "text": "", "image": lq})
    write_candidates(folder, rows)
    pq.write_table(pa.Table.from_pylist(inputs, schema=INPUT_SCHEMA), folder / INPUTS)
    return folder
