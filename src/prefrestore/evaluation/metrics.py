"""The metric table, and the metrics that need only pixels.

Images are RGB uint8, as they would be saved. No mean or standard deviation of a result is corrected to the reference
(VQFR's protocol does so, which inflates PSNR), and no border is cut beyond what a filter window needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from prefrestore.rewards.sharpness import high_band_energy as rewarded_energy

Direction = Literal["higher", "lower"]
Reference = Literal["hq", "lq", "samples", "set", "none"]


@dataclass(frozen=True)
class Metric:
    """One row of the metric table."""

    name: str
    label: str
    direction: Direction
    reference: Reference
    unit: str
    span: str
    digits: int
    source: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    row.name: row
    for row in (
        Metric("psnr", "PSNR", "higher", "hq", "dB", "0 to infinity", 2, "scikit-image", "pixel error against HQ"),
        Metric(
            "ssim",
            "SSIM",
            "higher",
            "hq",
            "",
            "-1 to 1",
            3,
            "Wang et al. 2004, by scikit-image (Gaussian window, sigma 1.5)",
            "local structure against HQ",
        ),
        Metric(
            "ms_ssim",
            "MS-SSIM",
            "higher",
            "hq",
            "",
            "0 to 1",
            3,
            "Wang et al. 2003; scales whose 11 px window fits, weights renormalised",
            "structure at several scales against HQ",
        ),
        Metric(
            "lpips",
            "LPIPS",
            "lower",
            "hq",
            "",
            "0 to about 1",
            3,
            "Zhang et al. 2018, VGG-16 features, version 0.1, at the images' own size",
            "difference from HQ as people see it; needs its published weights (evaluate.lpips_weights)",
        ),
        Metric(
            "identity_similarity",
            "Identity",
            "higher",
            "hq",
            "",
            "0 to 1",
            3,
            "dlib ResNet embedding: 2^-(distance/0.6)^2",
            "1/2 is dlib's same-person threshold; also part of the reward",
        ),
        Metric(
            "identity_angle",
            "Identity angle",
            "lower",
            "hq",
            "deg",
            "0 to 180",
            1,
            "dlib ResNet embedding (the literature's Deg uses ArcFace)",
            "angle between the embeddings of the restored face and HQ",
        ),
        Metric(
            "verification_rank",
            "Verification rank",
            "lower",
            "set",
            "",
            "1 to number of faces",
            2,
            "dlib ResNet embedding",
            "place of the true person among all evaluation faces; no reward uses it",
        ),
        Metric(
            "landmark_distance",
            "Landmarks",
            "lower",
            "hq",
            "% eyes",
            "0 to infinity",
            2,
            "dlib 68 points, inter-ocular normalised (300-W)",
            "mean displacement in per cent of the distance between the eyes",
        ),
        Metric(
            "sharpness",
            "Sharpness",
            "higher",
            "hq",
            "",
            "0 to infinity",
            3,
            "DCT of the luma above half the Nyquist frequency",
            "energy of fine detail relative to HQ: 1 is as fine as HQ; noise counts as detail",
        ),
        Metric(
            "lq_consistency",
            "LQ consistency",
            "higher",
            "lq",
            "dB",
            "0 to infinity",
            2,
            "replay of the degradation record; HQ itself reaches infinity",
            "the result degraded again by the recorded parameters, noise included, against the LQ",
        ),
        Metric(
            "niqe",
            "NIQE",
            "lower",
            "set",
            "",
            "0 to infinity",
            2,
            "Mittal et al. 2013, patches of a quarter side; fitted on this run's HQ, not the published parameters",
            "how unlike the patches' statistics are to those of sharp faces; does not compare with published values",
        ),
        Metric(
            "frechet_distance",
            "Face Fr\u00e9chet",
            "lower",
            "set",
            "",
            "0 to infinity",
            4,
            "Gaussians of dlib embeddings, all faces; not Inception features",
            "distance of the set of faces to the set of HQ faces; biased for few faces, alike for all columns",
        ),
        Metric(
            "kernel_distance",
            "Face kernel",
            "lower",
            "set",
            "\u00d7 10\u207b\u2076",
            "about 0 to infinity",
            1,
            "unbiased MMD^2 of dlib embeddings, cubic kernel",
            "distance of the set of faces to the set of HQ faces; unbiased, so it can lie below zero",
        ),
        Metric(
            "reward_total",
            "Reward",
            "higher",
            "hq",
            "",
            "unbounded",
            3,
            "the run's own reward artifact, parts scaled by its stored statistics",
            "what alignment maximised: not independent of the aligned model",
        ),
        Metric(
            "test_judge",
            "Test judge",
            "higher",
            "lq",
            "log-odds",
            "unbounded",
            3,
            "a preference network of other faces and, where votes are simulated, another oracle than the reward's",
            "what no training and no stopping rule has seen; 0 is the mean of the candidates",
        ),
        Metric(
            "sample_spread",
            "Spread",
            "lower",
            "samples",
            "",
            "0 to 0.5",
            4,
            "standard deviation over seeds, mean over pixels and channels, images in [0, 1]",
            "how far repeated samples of one LQ disagree",
        ),
        Metric(
            "sample_entropy",
            "Entropy",
            "lower",
            "samples",
            "nats",
            "-4.2 to infinity",
            3,
            "Gaussian entropy per pixel; our definition, the paper gives none",
            "solution entropy over seeds",
        ),
        Metric(
            "latent_entropy",
            "Latent entropy",
            "lower",
            "samples",
            "nats",
            "-5.5 to infinity",
            3,
            "Gaussian entropy per coordinate of the latent; our definition, the paper gives none",
            "solution entropy over seeds before the decoder",
        ),
        Metric(
            "identity_spread",
            "Identity spread",
            "lower",
            "samples",
            "",
            "0 to about 1",
            3,
            "mean distance of dlib embeddings over all pairs of samples",
            "how far repeated samples of one LQ are of another person; 0.6 is dlib's same-person threshold",
        ),
    )
}


def gain_sign(name: str) -> int:
    """Return +1 if a higher value of the metric is better, else -1."""
    return 1 if METRICS[name].direction == "higher" else -1


def psnr(restored: np.ndarray, hq: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, dB, over all RGB values; infinite for equal images."""
    if np.array_equal(restored, hq):
        return float("inf")
    return float(peak_signal_noise_ratio(hq, restored, data_range=255))


def ssim(restored: np.ndarray, hq: np.ndarray) -> float:
    """Return the mean structural similarity over RGB with the authors' Gaussian window (Wang et al. 2004)."""
    return float(
        structural_similarity(
            hq, restored, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5


def ms_ssim(restored: np.ndarray, hq: np.ndarray) -> float:
    """Return multi-scale SSIM (Wang et al. 2003, eq. 7), the mean over RGB; negative terms count as 0.

    Scales too small for the 11 px window are left out and the weights of the others renormalised: three scales at
    64 px, five from 176 px on.
    """
    scales = [k for k in range(5) if min(hq.shape[:2]) >> k >= _WINDOW]
    weights = np.array(MS_SSIM_WEIGHTS[: len(scales)])
    a, b = restored.astype(np.float64), hq.astype(np.float64)
    terms = []
    for scale in scales:
        full, contrast = _ssim_terms(a, b)
        terms.append(full if scale == scales[-1] else contrast)
        half = (a.shape[1] // 2, a.shape[0] // 2)
        a, b = (cv2.resize(image, half, interpolation=cv2.INTER_AREA) for image in (a, b))
    stacked = np.maximum(np.array(terms), 0)  # [scales, 3]
    return float(np.prod(stacked ** (weights / weights.sum())[:, None], axis=0).mean())


def _ssim_terms(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean SSIM and mean contrast-structure term of each channel [3]."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a, var_b = _window_mean(a * a) - mean_a**2, _window_mean(b * b) - mean_b**2
    contrast = (2 * (_window_mean(a * b) - mean_a * mean_b) + c2) / (var_a + var_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * contrast).mean((0, 1)), contrast.mean((0, 1))


def _window_mean(image: np.ndarray) -> np.ndarray:
    edge = _WINDOW // 2
    return cv2.GaussianBlur(image, (_WINDOW, _WINDOW), _SIGMA)[edge:-edge, edge:-edge]


def high_band_energy(image: np.ndarray) -> float:
    """Return :func:`prefrestore.rewards.sharpness.high_band_energy` of an image of 8 bits."""
    return float(rewarded_energy(image / 255))


def sharpness(restored: np.ndarray, hq_energy: float) -> float:
    """Return the high-band energy of ``restored`` relative to HQ's; NaN where HQ has none."""
    return high_band_energy(restored) / hq_energy if hq_energy > 0 else float("nan")
