"""Schedules of the old policy by name: how slowly it follows."""

from __future__ import annotations

from typing import Literal

OldDecay = Literal["paper", "none", "delayed"]


def old_decay(name: OldDecay, step: int) -> float:
    """Return d of ``old <- d * old + (1 - d) * policy`` after ``step`` optimizer steps (reference-method 4.2).

    ``paper``: min(0.001 n, 0.5). ``none``: 0, old becomes the policy. ``delayed``: 0 until step 75, then
    0.0075 (n - 75), at most 0.999.
    """
    if name == "paper":
        return min(0.001 * step, 0.5)
    if name == "delayed":
        return min(max(0.0075 * (step - 75), 0.0), 0.999)
    return 0.0
