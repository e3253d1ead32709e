"""The table of values per column, face and sample, and what is read from it; light enough for the gate."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prefrestore.evaluation.metrics import METRICS

PER_SAMPLE = "per_sample.parquet"
CANDIDATE = "policy"

LABELS = {
    "lq": "LQ",
    "bicubic": "Bicubic",
    "baseline": "U-Net",
    "base": "Base",
    "policy": "Aligned",
    "champion": "Champion",
    "codec": "Codec ceiling",
}


def per_face(samples: pd.DataFrame) -> pd.DataFrame:
    """Average the samples of each face; a face with a sample that could not be measured is NaN.

    Args:
        samples: a row per ``column``, ``id`` and ``sample``, with the metrics.

    Returns:
        A row per (``column``, ``id``), index of these two, sorted by id within the columns' own order.
    """
    names = [name for name in METRICS if name in samples]
    order = list(dict.fromkeys(samples["column"]))
    grouped = samples.groupby(["column", "id"], sort=True)[names].mean(skipna=False)
    return pd.concat([grouped.loc[[column]] for column in order])


def values_of(faces: pd.DataFrame, column: str, metric: str) -> np.ndarray:
    """Return one metric of one column, a value per face in order of id."""
    return faces.loc[column, metric].to_numpy(np.float64)
