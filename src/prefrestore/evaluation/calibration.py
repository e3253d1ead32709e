"""From the spread over seeds to an estimate of the error, fitted on some faces and judged on others."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from prefrestore.evaluation.significance import Estimate, Resampling, estimate
from prefrestore.evaluation.uncertainty import spread_map

NUM_KNOTS = 64
NUM_BINS = 10
SMOOTHING = 1 / 64
"""Width of the Gaussian that both maps are averaged with, in sides of the image: few seeds give a noisy spread."""


@dataclass(frozen=True)
class Calibration:
    """A rising curve from spread to expected absolute error, as knots; both for values in [0, 1]."""

    spread: tuple[float, ...]
    error: tuple[float, ...]

    def __call__(self, spread: np.ndarray) -> np.ndarray:
        """Return the expected absolute error for a smoothed spread map."""
        return np.interp(spread, self.spread, self.error)


@dataclass(frozen=True)
class Reliability:
    """How well the estimate holds on faces it was not fitted on.

    Attributes:
        rank_correlation: Spearman's between spread and error over a face's pixels, over faces.
        calibration_error: mean over bins of |predicted - true|.
        mean_error: mean true error, to compare ``calibration_error`` with.
        predicted: mean predicted error of each bin of equally many pixels.
        true: mean true error of each bin.
    """

    rank_correlation: Estimate
    calibration_error: float
    mean_error: float
    predicted: tuple[float, ...]
    true: tuple[float, ...]


def smooth(maps: np.ndarray) -> np.ndarray:
    """Average maps [N, H, W] with a Gaussian of ``SMOOTHING`` sides."""
    sigma = SMOOTHING * maps.shape[-1]
    return np.stack([cv2.GaussianBlur(np.ascontiguousarray(one), (0, 0), sigma) for one in maps])


def uncertainty_maps(samples: np.ndarray) -> np.ndarray:
    """Return the smoothed spread [N, H, W] of samples [S, N, H, W, 3] uint8."""
    return smooth(spread_map(samples))


def error_maps(samples: np.ndarray, hq: np.ndarray) -> np.ndarray:
    """Return the smoothed absolute error [N, H, W] of a sample, channels and samples averaged."""
    return smooth(np.abs(samples.astype(np.float64) - hq).mean((0, -1)) / 255)


def fit_calibration(spread: np.ndarray, error: np.ndarray) -> Calibration:
    """Fit a rising curve by isotonic regression over bins of equally many pixels."""
    order = np.argsort(spread, axis=None, kind="stable")
    bins = np.array_split(order, NUM_KNOTS)
    x = np.array([spread.flat[rows].mean() for rows in bins])
    y = np.array([error.flat[rows].mean() for rows in bins])
    rising = isotonic_regression(y, weights=np.array([len(rows) for rows in bins], np.float64)).x
    return Calibration(tuple(map(float, x)), tuple(map(float, rising)))


def judge_calibration(calibration: Calibration, spread: np.ndarray, error: np.ndarray, how: Resampling) -> Reliability:
    """Judge a calibration on maps [N, H, W] that it was not fitted on."""
    predicted = calibration(spread)
    order = np.argsort(predicted, axis=None, kind="stable")
    bins = np.array_split(order, NUM_BINS)
    means = [(float(predicted.flat[rows].mean()), float(error.flat[rows].mean())) for rows in bins]
    ranks = [_rank_correlation(a, b) for a, b in zip(spread, error, strict=True)]
    return Reliability(
        rank_correlation=estimate(np.array(ranks), how),
        calibration_error=float(np.mean([abs(a - b) for a, b in means])),
        mean_error=float(error.mean()),
        predicted=tuple(a for a, _ in means),
        true=tuple(b for _, b in means),
    )


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation over pixels; NaN where one of the maps is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second, axis=None).statistic)


def calibrate(samples: np.ndarray, hq: np.ndarray, how: Resampling) -> tuple[Calibration, Reliability] | None:
    """Fit on the faces of even place, judge on those of odd place; None with one sample or fewer than four faces."""
    if len(samples) < 2 or len(hq) < 4:
        return None
    spread, error = uncertainty_maps(samples), error_maps(samples, hq)
    calibration = fit_calibration(spread[::2], error[::2])
    return calibration, judge_calibration(calibration, spread[1::2], error[1::2], how)
