"""Hair of the head: strands on an ellipsoid around the skull, curtains of long hair, curls, and their light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import MIDDLE
from prefrestore.data.portraits.features import curve
from prefrestore.data.portraits.geometry import Floats, Head
from prefrestore.data.portraits.raster import Raster, over, to_float
from prefrestore.data.portraits.skin import Light

CENTER = np.array([MIDDLE, 192.0, -100.0], np.float32)
RADII = np.array([141.0, 150.0, 118.0], np.float32)
_CELLS = 64
_POINTS = 6


@dataclass(frozen=True)
class Style:
    """How one style is cut and combed. Lengths in frame pixels, `part` a direction on the skull, `length` in radians."""

    top: float
    side: float
    part: tuple[float, float, float]
    length: float = 0.7
    strands: int = 1300
    bottom: float = 262.0
    curtain: float = 0.0
    wave: float = 0.0
    curl: float = 0.0
    fringe: float = 0.0
    lift: float = 0.0
    cover: float = 1.0


STYLES = {
    "bald": Style(0, 0, (0, -1, 0), cover=0.0),
    "receding": Style(7, 8, (0.1, -0.9, -0.45), 0.5, 650, lift=40.0, cover=0.92),
    "cropped": Style(6, 4, (0.0, -0.96, -0.3), 0.14, 1300, bottom=250, cover=0.86),
    "short": Style(17, 9, (0.1, -0.98, -0.2), 0.55, 1300),
    "side-parted": Style(24, 10, (0.52, -0.84, 0.25), 0.85, 1300),
    "textured": Style(32, 9, (0.0, -0.75, -0.66), 0.34, 1000, wave=5.0),
    "short curly": Style(28, 18, (0.0, -1.0, -0.2), 0.3, 500, curl=6.0),
    "afro": Style(62, 62, (0.0, -1.0, -0.2), 0.3, 700, bottom=330, curl=6.5),
    "bob": Style(22, 24, (0.30, -0.95, 0.1), 0.95, 1300, curtain=415.0, wave=2.0),
    "bob with a fringe": Style(24, 24, (0.0, -1.0, -0.1), 1.0, 1300, curtain=410.0, wave=1.5, fringe=188.0),
    "long straight": Style(17, 17, (0.05, -1.0, 0.1), 1.0, 1300, curtain=560.0, wave=2.0),
    "long wavy": Style(26, 32, (0.28, -0.96, 0.1), 0.95, 1300, curtain=560.0, wave=11.0),
    "long curly": Style(36, 46, (0.1, -1.0, 0.0), 0.5, 700, curtain=545.0, wave=9.0, curl=7.5),
    "tied back": Style(12, 5, (0.0, 0.25, 0.97), 1.5, 1300, bottom=246),
}  # fmt: skip


@dataclass(frozen=True)
class Wig:
    """One person's hair style in one pose: what the drawing functions need."""

    style: Style
    head: Head
    raster: Raster
    light: Light
    radii: Floats
    random: np.random.Generator

    def on_skull(self, directions: Floats, lift: float | Floats = 0.0) -> Floats:
        """Return frame positions [N, 2] of points in unit `directions` [N, 3] on the hair's surface."""
        return self.head.place((CENTER + directions * (self.radii + np.asarray(lift, np.float32))).astype(np.float32))


def wig_of(head: Head, raster: Raster, light: Light, random: np.random.Generator) -> Wig:
    """Return the hair of `head`."""
    style, shape = STYLES[head.traits.hair_style], head.traits.shape
    volume = np.array([style.side, style.top, 0.5 * style.top]) * random.uniform(0.75, 1.25)
    radii = RADII * np.array([1 + 0.035 * shape["face_width"], 1 + 0.03 * shape["forehead"], 1.0]) + volume
    if style.part[0] != 0.0 and random.random() < 0.5:
        style = Style(**{**style.__dict__, "part": (-style.part[0], *style.part[1:])})
    return Wig(style, head, raster, light, radii.astype(np.float32), random)


def _hairline(wig: Wig) -> Floats:
    """Return the lower edge of the hair over the forehead, from the left sideburn to the right, in mean coordinates."""
    lift, bottom = wig.style.lift - 8.0, wig.style.bottom
    random = wig.random
    peak = random.uniform(-4, 8)
    half = np.array([(134, bottom + 8), (125, bottom - 14), (121, 215), (119, 185), (108 - 0.1 * lift, 160 - 0.45 * lift),
                     (84, 135 - 1.05 * lift), (48, 119 - 0.75 * lift), (18, 114 - 0.55 * lift + peak)])  # fmt: skip
    half += random.normal(0.0, 1.6, half.shape)
    right = half[::-1] * np.array([1.0, 1.0])
    points = np.concatenate([half * np.array([-1.0, 1.0]), right]) + np.array([MIDDLE, 0.0])
    return curve(points.astype(np.float32), 72)


def _outer(wig: Wig) -> Floats:
    """Return the outline of the hair over the skull, from the right side over the top to the left, in the frame."""
    low = np.arcsin(np.clip((wig.style.bottom - CENTER[1]) / wig.radii[1], -0.95, 0.95)) + np.pi / 2
    angle = np.linspace(low, -low, 90)
    bumps = sum(wig.random.normal(0, 1.0) / k * np.sin(k * angle + wig.random.uniform(0, 6)) for k in range(2, 9))
    rough = 1.0 + (0.05 if wig.style.curl else 0.022) * bumps * min(1.0, wig.style.top / 20.0)
    directions = np.stack([np.sin(angle) * rough, -np.cos(angle) * rough, np.zeros_like(angle)], axis=1)
    return wig.on_skull(directions.astype(np.float32))


def _basis(part: tuple[float, float, float]) -> tuple[Floats, Floats, Floats]:
    pole = np.array(part) / np.linalg.norm(part)
    first = np.cross(pole, [0.0, 0.0, 1.0] if abs(pole[2]) < 0.9 else [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    return tuple(axis.astype(np.float32) for axis in (pole, first, np.cross(pole, first)))  # type: ignore[return-value]


def _combed(wig: Wig) -> Floats:
    """Return strands that leave the parting along great circles, [N, P, 2] in the frame."""
    style, random = wig.style, wig.random
    pole, first, second = _basis(style.part)
    around, start, reach, sway, drop = random.random((5, style.strands), np.float32)[..., None]
    around *= np.float32(2 * np.pi)
    steps = np.linspace(0, 1, _POINTS, dtype=np.float32)
    along = np.arccos(1.0 - start * np.float32(1.25)) + style.length * (0.6 + 0.6 * reach) * steps
    wobble = 0.012 * style.wave + 0.02
    turn = around + wobble * np.sin(along * 5.0 + 3.0 * around) + 0.2 * (sway - 0.5) * along
    sine = np.sin(along)
    directions = np.stack([np.cos(along) * p + sine * (np.cos(turn) * f + np.sin(turn) * s)
                           for p, f, s in zip(pole, first, second, strict=True)], axis=-1)  # fmt: skip
    visible = directions[:, 3, 2] > -0.25
    directions, lift = directions[visible], (drop[visible] * 6.0 - 4.0) * np.ones(_POINTS, np.float32)
    if style.wave > 4.0 and style.curtain == 0.0:
        lift = lift + 9.0 * steps * (0.2 + sway[visible])
    flat = wig.on_skull(directions.reshape(-1, 3), lift.reshape(-1, 1))
    return flat.reshape(-1, _POINTS, 2)


def _curtain_paths(wig: Wig, sign: float, spread: Floats, steps: int = 14) -> Floats:
    """Return hanging strands of one side, [N, steps, 2]; `spread` in 0 (at the face) to 1 (outermost)."""
    style = wig.style
    t = np.linspace(0.0, 1.0, steps)[None]
    s = spread[:, None]
    top = 105.0 + 55.0 * s
    y = top + (style.curtain - top) * t
    outer = wig.radii[0] * (1.0 + 0.06 * np.sin(np.pi * t)) + (18.0 + 0.9 * style.side) * t
    inner = np.interp(t[0], [0, 0.2, 0.45, 0.7, 1.0], [88, 121, 124, 112, 104])[None]
    if style.curtain < 450:
        outer = wig.radii[0] * (1.0 + 0.10 * np.sin(np.pi * t * 0.9)) - 10.0 * t**3
        inner = np.interp(t[0], [0, 0.25, 0.6, 1.0], [88, 121, 119, 96])[None]
    x = inner + (outer - inner) * s**0.8
    phase = 5.0 * s + sign + wig.random.normal(0, 0.25, s.shape)
    x = x + style.wave * np.sin(2 * np.pi * (y / 105.0) + phase) * np.minimum(1.0, 2.2 * t)
    z = np.full_like(x, -70.0) - 30.0 * s
    points = np.stack([MIDDLE + sign * x, y + 0 * x, z], axis=-1).astype(np.float32)
    placed = wig.head.place(points.reshape(-1, 3)).reshape(points.shape[:2] + (2,))
    hang = np.clip((placed[..., 1] - 330.0) / 200.0, 0.0, 1.0)
    placed[..., 0] += hang * 0.4 * (MIDDLE - wig.head.place(np.array([[MIDDLE, 440.0, -60.0]], np.float32))[0, 0])
    return placed


def _curls(wig: Wig, centers: Floats) -> Floats:
    """Return small open rings at `centers` [N, 2], [N, 7, 2]."""
    count = len(centers)
    turn = wig.random.uniform(0, 2 * np.pi, (count, 1)) + np.linspace(0, 4.4, 7)[None]
    radius = wig.style.curl * wig.random.uniform(0.6, 1.3, (count, 1)) * np.linspace(1.0, 0.7, 7)[None]
    return (centers[:, None] + np.stack([np.cos(turn), np.sin(turn)], axis=-1) * radius[..., None]).astype(np.float32)


def _shading(wig: Wig) -> tuple[Floats, Floats]:
    """Return on a coarse grid the diffuse light [3, C, C] and the sheen of strands [C, C]."""
    line = (np.arange(_CELLS, dtype=np.float32) + np.float32(0.5)) * np.float32(512.0 / _CELLS)
    middle = wig.on_skull(np.zeros((1, 3), np.float32))[0]
    nx = np.clip((line[None] - middle[0]) / (1.04 * wig.radii[0]), -0.96, 0.96) * np.ones((_CELLS, 1), np.float32)
    ny = np.clip((line[:, None] - middle[1]) / (1.04 * wig.radii[1]), -0.96, 0.6) * np.ones((1, _CELLS), np.float32)
    flat = np.maximum(1.0, np.sqrt(nx * nx + ny * ny) / 0.97)
    nx, ny = nx / flat, ny / flat
    nz = np.sqrt(np.maximum(1.0 - nx * nx - ny * ny, 0.03))
    light = wig.light
    lx, ly, lz = light.direction
    facing = np.maximum((lx * nx + ly * ny + lz * nz + 0.25) / 1.25, 0.0)
    px, py, pz = wig.style.part if wig.style.curtain == 0.0 else (0.0, -1.0, 0.15)
    hx, hy, hz = (light.direction + [0, 0, 1]) / np.linalg.norm(light.direction + [0, 0, 1])
    along = px * nx + py * ny + pz * nz
    tx, ty, tz = px - along * nx, py - along * ny, pz - along * nz
    slant = (hx * tx + hy * ty + hz * tz) ** 2 / (tx * tx + ty * ty + tz * tz + 1e-3)
    sheen = np.maximum(1.0 - slant, 0.0) ** 14 * (0.3 + 0.7 * facing)
    return light.dome[:, None, None] * 0.85 + light.key[:, None, None] * facing, sheen


def _strand_field(raster: Raster, lines: Floats) -> Floats:
    """Return the strands' brightness around 0 in the window, [h, w]."""
    field = np.full(raster.shape, 110, np.uint8)
    thickness = max(1, round(0.9 * raster.scale))
    fixed = raster.fixed(lines)
    for group, value in enumerate((70, 130, 90, 160, 50, 190, 105, 145, 220)):
        cv2.polylines(field, list(fixed[group::9]), False, value, thickness, cv2.LINE_AA, 4)
    return (field * np.float32(1 / 255.0) - np.float32(110 / 255.0)) * np.float32(min(1.0, 0.5 + 0.7 * raster.scale))


def _spread(wig: Wig, raster: Raster, cells: Floats) -> list[Floats]:
    """Return coarse planes [N, C, C] at the pixels of the window."""
    size = (wig.raster.size,) * 2
    return [raster.of(cv2.resize(np.asarray(plane, np.float32), size, interpolation=cv2.INTER_LINEAR)) for plane in cells]


def _paint(canvas: Floats, wig: Wig, alpha: Floats, lines: Floats) -> None:
    """Blend hair of coverage `alpha` [S, S] over the canvas."""
    columns = np.flatnonzero(alpha.max(0))
    rows = np.flatnonzero(alpha.max(1))
    raster = Raster(wig.raster.size, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    glow, sheen = _shading(wig)
    base = textures.HAIR[wig.head.traits.hair_color]
    tint = 0.55 * base + 0.16 * wig.light.key * (0.25 + 0.75 * np.sqrt(base))
    cells = np.concatenate([base[:, None, None] * glow, glow, sheen[None]])
    planes = _spread(wig, raster, cells if wig.head.traits.grey > 0.02 else cells[[0, 1, 2, 6]])
    field, cover, target = _strand_field(raster, lines), raster.of(alpha), raster.of(canvas)
    strand = np.maximum(0.75 + 1.25 * field, 0.15)
    shine = planes[-1] * np.maximum(0.35 + 1.3 * field, 0.0)
    grey = np.clip(wig.head.traits.grey * (0.55 + 1.6 * field), 0.0, 1.0)
    for channel in range(3):
        color = planes[channel]
        if len(planes) > 4:
            color = color + (planes[3 + channel] * textures.GREY_STRAND[channel] - color) * grey
        target[channel] += (color * strand + np.float32(tint[channel]) * shine - target[channel]) * cover


def draw_back_hair(canvas: Floats, wig: Wig) -> None:
    """Draw what hangs behind neck and shoulders, in the shade."""
    if wig.style.curtain == 0.0:
        return
    raster = wig.raster.window(np.array([[40.0, 150.0], [472.0, 512.0]]), 0.0)
    lines = [_curtain_paths(wig, sign, np.linspace(0.05, 1.0, 50, dtype=np.float32)) for sign in (-1.0, 1.0)]
    outline = np.concatenate([lines[0][-1], lines[1][-1][::-1]])
    mask = raster.blur(raster.fill(outline), 1.5)
    field = _strand_field(raster, np.concatenate(lines))
    color = textures.HAIR[wig.head.traits.hair_color]
    color = color + (textures.GREY_STRAND - color) * np.float32(0.55 * wig.head.traits.grey)
    shade = color * (0.45 * wig.light.dome + 0.12 * wig.light.key)
    over(raster.of(canvas), shade[:, None, None] * (0.8 + field), mask)


def _edge_hairs(wig: Wig, hairline: Floats, outer: Floats) -> Floats:
    """Return short hairs that break up the hairline and the silhouette, [N, 3, 2]."""
    random, style = wig.random, wig.style
    length = 7.0 if style.cover < 0.95 or style.top < 10 else 11.0
    picks = hairline[random.integers(0, len(hairline) - 1, 160)]
    middle = wig.on_skull(np.zeros((1, 3), np.float32))[0]
    inward = picks - (middle + np.array([0.0, 55.0], np.float32))
    inward /= np.linalg.norm(inward, axis=1, keepdims=True) + 1e-6
    size = length * random.uniform(0.4, 1.2, (160, 1))
    low = np.stack([picks - 0.7 * inward * size + random.normal(0, 2.0, (160, 2)), picks, picks + inward * 10.0], axis=1)
    rim = outer[random.integers(0, len(outer) - 1, 130)]
    away = (rim - middle) / (np.linalg.norm(rim - middle, axis=1, keepdims=True) + 1e-6)
    along = np.stack([-away[:, 1], away[:, 0]], axis=1) * random.choice([-1.0, 1.0], (130, 1))
    fly = min(6.0, 1.5 + 0.16 * style.top) * random.uniform(0.2, 1.0, (130, 1))
    high = np.stack([rim - 3.0 * away, rim + away * fly * 0.5 + along * 4.0, rim + away * fly + along * 10.0], axis=1)
    return np.concatenate([low, high]).astype(np.float32)


def _cap(wig: Wig) -> tuple[Floats, Floats]:
    """Return coverage [S, S] and strands [N, P, 2] of the hair on the skull."""
    raster, style = wig.raster, wig.style
    hairline = wig.head.project(_hairline(wig), lift=1.0)
    outer = _outer(wig)
    mask = raster.fill(np.concatenate([outer, hairline]))
    soft = raster.blur(mask, 4.5 if style.cover < 0.95 else 2.2)
    hairs = raster.blank()
    raster.strokes(hairs, _edge_hairs(wig, hairline, outer), 0.7, 230)
    alpha = np.maximum(soft * np.float32(style.cover), to_float(hairs) * 0.8)
    lines = _combed(wig)
    if style.curl:
        rim = outer[wig.random.integers(0, len(outer), 160)] + wig.random.normal(0, 4.0, (160, 2))
        rings = _curls(wig, np.concatenate([lines[:, 2], rim]).astype(np.float32))
        tufts = raster.blank()
        raster.strokes(tufts, rings[-160:], 4.0, 235)
        alpha = np.maximum(alpha, to_float(tufts))
        lines = rings
    return alpha, lines


def _fringe(wig: Wig) -> tuple[Floats, Floats]:
    """Return coverage and strands of a fringe over the forehead."""
    random, low = wig.random, wig.style.fringe
    x = np.linspace(-118, 118, 130) + random.normal(0, 2.0, 130)
    ends = low + random.normal(0, 3.5, 130) + 10.0 * (np.abs(x) / 118) ** 3
    t = np.linspace(0, 1, 8)[None]
    across = x[:, None] * (0.55 + 0.45 * np.sqrt(t)) + random.normal(0, 4.0, (130, 1)) * (1 - t)
    points = np.stack([MIDDLE + across, 62.0 + (ends[:, None] - 62.0) * t], axis=-1).astype(np.float32)
    lines = wig.head.project(points.reshape(-1, 2), lift=7.0).reshape(points.shape)
    mask = wig.raster.blank()
    wig.raster.strokes(mask, lines, 7.5, 255)
    return to_float(mask), lines


def _curtains(wig: Wig) -> tuple[Floats, Floats]:
    """Return coverage and strands of the hair that hangs beside the face."""
    fills, lines = [], []
    for sign in (-1.0, 1.0):
        edge = _curtain_paths(wig, sign, np.array([0.0, 1.0]))
        fills.append(np.concatenate([edge[0], edge[1][::-1]]))
        lines.append(_curtain_paths(wig, sign, wig.random.random(170)))
    strands = np.concatenate(lines)
    alpha = wig.raster.blur(wig.raster.fill(*fills), 1.8)
    loose = wig.raster.blank()
    wig.raster.strokes(loose, strands[::2], 1.6, 235)
    if wig.style.curl:
        at = strands[wig.random.integers(0, len(strands), 420), wig.random.integers(2, strands.shape[1], 420)]
        rings = _curls(wig, at + wig.random.normal(0, 5.0, at.shape).astype(np.float32))
        wig.raster.strokes(loose, rings, 3.5, 235)
        strands = np.concatenate([strands[:, ::2][:, :7], rings])
    return np.maximum(alpha, to_float(loose)), strands


def _shadow(canvas: Floats, wig: Wig, alpha: Floats, on: Floats) -> None:
    shift = np.array([-wig.light.direction[0] * 9.0, 5.0 - 9.0 * wig.light.direction[1]]) * wig.raster.scale
    moved = cv2.warpAffine(wig.raster.blur(alpha, 5.0), np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), alpha.shape[::-1])
    canvas *= 1.0 - 0.50 * moved * on


def draw_hair(canvas: Floats, wig: Wig, skin: Floats) -> None:
    """Draw the hair in front; `skin` [S, S] is where its shadow falls."""
    style = wig.style
    if style.cover == 0.0:
        return
    layers = [_cap(wig)]
    if style.curtain:
        layers.append(_curtains(wig))
    if style.fringe:
        layers.append(_fringe(wig))
    alpha = layers[0][0]
    for cover, _ in layers[1:]:
        alpha = np.maximum(alpha, cover)
    _shadow(canvas, wig, alpha, skin)
    _paint(canvas, wig, alpha, _even([lines for _, lines in layers]))


def _even(groups: list[Floats]) -> Floats:
    """Return strands of several groups with one number of points, by repeating last points, [N, P, 2]."""
    points = max(lines.shape[1] for lines in groups)
    return np.concatenate([np.concatenate([lines, np.repeat(lines[:, -1:], points - lines.shape[1], axis=1)], axis=1)
                           for lines in groups])  # fmt: skip


__all__ = ["STYLES", "draw_back_hair", "draw_hair", "wig_of"]
