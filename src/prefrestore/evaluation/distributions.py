"""Distances between sets of faces: does a method lose variety, or leave the set of real faces?

Features are dlib's 128 identity numbers, named in every table; values do not compare with those of Inception features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh


@dataclass(frozen=True)
class SetDistance:
    """Distances of one column's faces to the HQ faces."""

    frechet_distance: float
    kernel_distance: float
    n: int
    missing: int


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets [N, D], [M, D] (Heusel et al. 2017, eq. 6).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. Biased upward for few samples; compare columns of equal n only.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _square_root(c1)
    cross = np.sqrt(np.clip(eigh(root @ c2 @ root, eigvals_only=True), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy of paired sets [N, D] (kernel of Binkowski et al. 2018).

    The kernel is ``(x.y / D + 1)^3``. Row i of both sets is one person, so terms of a row with itself are left out
    between the sets as they are within each: otherwise the estimate would be biased below zero.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    count, size = a.shape
    kernels = (a @ a.T / size + 1) ** 3 + (b @ b.T / size + 1) ** 3 - 2 * (a @ b.T / size + 1) ** 3
    return float((kernels.sum() - np.trace(kernels)) / (count * (count - 1)))


def set_distance(samples: np.ndarray, hq: np.ndarray) -> SetDistance:
    """Return the distances of embeddings [S, N, 128] to HQ's [N, 128], averaged over S; unknown faces left out."""
    known = np.isfinite(hq).all(-1) & np.isfinite(samples).all((0, 2))
    count = int(known.sum())
    if count < 2:
        return SetDistance(float("nan"), float("nan"), count, len(hq) - count)
    pairs = [(faces[known], hq[known]) for faces in samples]
    return SetDistance(
        float(np.mean([frechet_distance(*pair) for pair in pairs])),
        float(np.mean([kernel_distance(*pair) for pair in pairs])),
        count,
        len(hq) - count,
    )
