"""Sharpness: how much of HQ's finest detail a restoration has."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor

from prefrestore.rewards.base import References

LUMA = np.array([0.299, 0.587, 0.114])


def high_band_energy(images: np.ndarray) -> np.ndarray:
    """Return the mean energy per pixel of the luma above half the Nyquist frequency.

    The bands are those of the orthonormal DCT-II, which knows no jump at the border; coefficient (u, v) of an H x W
    image has the frequency ``hypot(u / H, v / W)`` in units of the Nyquist frequency.

    Args:
        images: RGB [..., H, W, 3] with values in [0, 1].

    Returns:
        [...] float64.
    """
    luma = images.astype(np.float64) @ LUMA
    height, width = luma.shape[-2:]
    frequency = np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width)
    energy: np.ndarray = dctn(luma, axes=(-2, -1), norm="ortho") ** 2
    return energy[..., frequency >= 0.5].sum(-1) / (height * width)


class SharpnessReward:
    """High-band energy relative to HQ's: 1 is as sharp as HQ. Noise raises it too, so alone it can be gamed."""

    name = "sharpness"

    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN without HQ."""
        if references.hq is None:
            return torch.full((len(restored),), torch.nan)
        energy, hq_energy = (
            high_band_energy(images.detach().float().permute(0, 2, 3, 1).cpu().numpy())
            for images in (restored, references.hq)
        )
        return torch.from_numpy(energy / np.where(hq_energy > 0, hq_energy, np.nan)).float()
