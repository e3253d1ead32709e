"""Whether a comparison depends on the luck of the sampler: its gain with each seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from prefrestore.evaluation.metrics import METRICS, gain_sign
from prefrestore.evaluation.significance import Comparison


def with_seed_gains(comparisons: Sequence[Comparison], samples: pd.DataFrame) -> list[Comparison]:
    """Return the comparisons with ``seed_gains`` filled in where the candidate has several samples of a face.

    A column without chance is compared with every sample. Metrics of a set of samples have no value for one seed.
    """
    order = samples.set_index(["column", "sample", "id"]).sort_index()
    return [
        row if METRICS[row.metric].reference == "samples" else replace(row, seed_gains=_gains(row, order[row.metric]))
        for row in comparisons
    ]


def _gains(row: Comparison, values: pd.Series) -> tuple[float, ...]:
    candidate, against = (values.loc[name].unstack("sample").to_numpy() for name in (row.candidate, row.against))
    if candidate.shape[1] < 2:
        return ()
    gains = gain_sign(row.metric) * (candidate - against)  # [N, S]
    with np.errstate(invalid="ignore"):
        known = np.ma.masked_invalid(gains)
    return tuple(float(mean) for mean in known.mean(0).filled(np.nan))
