"""Small charts as inline SVG: no script, no font, no file beside; colours are the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 24
SMOOTHING = 9


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels; reversed when ``start`` > ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centred mean over ``window`` values, over fewer at the ends."""
    half = window // 2
    return np.array([values[max(0, k - half) : k + half + 1].mean() for k in range(len(values))])


def line_chart(steps: Sequence[float], values: Sequence[float], title: str) -> Markup:
    """Draw one training curve: the values thin, their moving average thick; what is not finite is left out."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) == 0:
        return Markup("")
    across = Axis(float(x.min()), float(x.max()), LEFT, WIDTH - RIGHT)
    up = Axis(*_padded(float(y.min()), float(y.max())), HEIGHT - BOTTOM, TOP)
    smooth = moving_average(y, SMOOTHING) if len(y) >= 2 * SMOOTHING else y
    body = [*_grid(across, up), _path(x, y, across, up, "raw"), _path(x, smooth, across, up, "smooth")]
    label = escape(f"{title}: from {y[0]:.4g} to {y[-1]:.4g}")
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(body)
    )


def reliability_chart(predicted: Sequence[float], true: Sequence[float]) -> Markup:
    """Draw true against predicted error of each bin; on the diagonal the estimate is right."""
    top = 1.05 * max(*predicted, *true) or 1.0
    across, up = Axis(0.0, top, LEFT, WIDTH - RIGHT), Axis(0.0, top, HEIGHT - BOTTOM, TOP)
    x, y = np.asarray(predicted), np.asarray(true)
    ends = np.array([0.0, top])
    dots = [
        Markup('<circle cx="{}" cy="{}" r="3"/>').format(f"{across(a):.1f}", f"{up(b):.1f}")
        for a, b in zip(x, y, strict=True)
    ]
    body = [*_grid(across, up), _path(ends, ends, across, up, "ideal"), _path(x, y, across, up, "smooth"), *dots]
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="true against predicted error">{}</svg>').format(
        WIDTH, HEIGHT, Markup("").join(body)
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _path(x: np.ndarray, y: np.ndarray, across: Axis, up: Axis, kind: str) -> Markup:
    points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, y, strict=True))
    return Markup('<polyline class="{}" points="{}"/>').format(kind, points)


def _grid(across: Axis, up: Axis) -> list[Markup]:
    lines = []
    for tick in nice_ticks(up.low, up.high):
        y = f"{up(tick):.1f}"
        lines.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" class="y">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 5, y, f"{tick:g}")
        )
    for tick in nice_ticks(across.low, across.high):
        x = f"{across(tick):.1f}"
        lines.append(Markup('<text x="{}" y="{}" class="x">{}</text>').format(x, HEIGHT - 7, f"{tick:g}"))
    return lines


def interval_bar(gain: float, low: float, high: float, margin: float, outcome: str) -> Markup:
    """Draw a gain with its interval about zero; right is better, the shaded band is the margin."""
    width, height = 180, 26
    reach = 1.15 * max(abs(low), abs(high), abs(gain), margin) or 1.0
    across = Axis(-reach, reach, 4, width - 4)
    band = across(0) - across(-margin)
    return Markup(
        '<svg class="bar {}" viewBox="0 0 {} {}" aria-hidden="true">'
        '<rect class="margin" x="{}" y="3" width="{}" height="20"/><line class="zero" x1="{}" x2="{}" y1="2" y2="24"/>'
        '<line class="reach" x1="{}" x2="{}" y1="13" y2="13"/><circle cx="{}" cy="13" r="4.5"/></svg>'
    ).format(
        outcome.replace(" ", "-"),
        width,
        height,
        f"{across(-margin):.1f}",
        f"{band:.1f}",
        f"{across(0):.1f}",
        f"{across(0):.1f}",
        f"{across(low):.1f}",
        f"{across(high):.1f}",
        f"{across(gain):.1f}",
    )
