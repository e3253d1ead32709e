"""Random numbers that depend on names and counts alone, never on order, workers or resumption."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed from the given parts; equal parts give the equal seed on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by :func:`derive`."""
    return np.random.Generator(np.random.PCG64(derive(*parts)))


def torch_generator(*parts: int | str) -> Any:
    """Return a CPU torch generator seeded by :func:`derive`."""
    import torch

    return torch.Generator().manual_seed(derive(*parts))


def be_deterministic() -> None:
    """Make torch choose kernels whose results repeat to the bit.

    Without it oneDNN's convolution gradients depend on where tensors happen to lie in memory. An operation that has no
    such kernel (on a GPU) warns instead of failing.
    """
    import torch
    from torch.utils import deterministic

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would only make reads of unset values repeat; there are none, and it costs some per cent.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of ``range(size)`` that epoch ``epoch`` goes through."""
    return rng("order", seed, epoch).permutation(size)


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the sample indices of training step ``step``: shuffled epochs laid end to end, cut into batches.

    A pure function of its arguments, so that a resumed run sees the order of an uninterrupted one.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // size
    orders = {epoch: epoch_order(size, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position % size] for epoch, position in zip(epochs, positions, strict=True)])
