"""Advantages place by place: what a scalar per image cannot tell, told for every cell of the latent (ours).

A group's restorations differ in every cell, so a cell's own advantage says more than its share of the image's. All
three kinds are standardised over the group at every place and sum to zero there.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from prefrestore.config import LocalConfig

EPSILON = 1e-4
"""Added to the standard deviation, as in the published advantage of whole images."""
LUMA = (0.299, 0.587, 0.114)
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
SMALLEST_ENERGY = 1e-6
"""Added to HQ's energy of detail; that of a difference of one 8-bit level is 1.5e-5."""


def local_advantages(x0: Tensor, target: Tensor, images: Tensor, hq: Tensor, weights: LocalConfig) -> Tensor:
    """Return the weighted sum of the advantages for nearness, agreement and detail, [K, 1, h, w].

    Args:
        x0: latents of one group, [K, C, h, w].
        target: latent of HQ, [C, h, w].
        images: what the latents decode to, [K, 3, H, W] in [0, 1]; H and W are multiples of h and w.
        hq: [3, H, W].
        weights: of the three.
    """
    detailed = agreed_detail(images, hq, x0.shape[-1]).to(x0.device) if weights.detail else 0.0
    return weights.nearness * nearness(x0, target) + weights.agreement * agreement(x0) + weights.detail * detailed


def nearness(x0: Tensor, target: Tensor) -> Tensor:
    """Return how much nearer to the target [C, h, w] each sample of ``x0`` [K, C, h, w] is than its group."""
    return _standardised(-(x0 - target).double().square().mean(1, keepdim=True)).float()


def agreement(x0: Tensor) -> Tensor:
    """Return how much nearer to the group's mean each sample of ``x0`` [K, C, h, w] is than its group.

    Solution entropy is what such distances measure. HQ's own distance holds them too, under what no sample can know.
    """
    return nearness(x0, x0.mean(0))


def agreed_detail(images: Tensor, hq: Tensor, size: int) -> Tensor:
    """Return how much each sample has of the detail that its group agrees on, where that falls short of HQ's.

    The product of a sample's high band with that of the group's mean, averaged around each cell. Detail of one sample
    alone has no part in it, so it does not undo :func:`agreement`. A cell's advantage is scaled by the room left:
    ``1 - energy of the group's images / energy of HQ``, in [-1, 1]; sharper than HQ is as bad as duller.

    Args:
        images: [K, 3, H, W] in [0, 1].
        hq: [3, H, W].
        size: cells along each side.

    Returns:
        [K, 1, size, size].
    """
    high, high_hq = high_band(images.double()), high_band(hq[None].double())
    wanted = _around_cells(high_hq.square(), size)
    present = _around_cells(high.square(), size).mean(0, keepdim=True)
    room = ((wanted - present) / (wanted + SMALLEST_ENERGY)).clamp(-1, 1)
    product = _around_cells(high * high.mean(0, keepdim=True), size)
    # products are of the order of energies, far below EPSILON
    return (_standardised(product / (present + SMALLEST_ENERGY)) * room).float()


def high_band(images: Tensor) -> Tensor:
    """Return the luma [N, 1, H, W] of images [N, 3, H, W] less its 5-tap binomial blur."""
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    taps = images.new_tensor(BINOMIAL)
    padded = functional.pad(luma, (2, 2, 2, 2), mode="reflect")
    blurred = functional.conv2d(functional.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])
    return luma - blurred


def _around_cells(values: Tensor, size: int) -> Tensor:
    """Return the mean of values [N, 1, H, W] over each cell and its eight neighbours, [N, 1, size, size]."""
    cells = functional.avg_pool2d(values, values.shape[-1] // size)
    return functional.avg_pool2d(functional.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _standardised(values: Tensor) -> Tensor:
    """Return ``(value - mean) / (std + 1e-4)`` over the group [K, 1, h, w], population std."""
    centred = values - values.mean(0)
    return centred / (centred.square().mean(0).sqrt() + EPSILON)
