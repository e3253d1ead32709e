"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def ema_decay(step: int, cap: float) -> float:
    """Return min((1 + n) / (10 + n), cap) for update n, counted from 1 (reference-method 4.1)."""
    return min((1 + step) / (10 + step), cap)


class Ema:
    """Keeps ``shadow <- d * shadow + (1 - d) * parameter`` with d of :func:`ema_decay`."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """Start from the parameters' present values; ``decay`` is the cap, reached after a short rise."""
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take one step towards the parameters."""
        self.updates += 1
        decay = ema_decay(self.updates, self.decay)
        for name, value in parameters.items():
            self.shadow[name].lerp_(value.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters with their averages."""
        for name, value in parameters.items():
            value.copy_(self.shadow[name])
