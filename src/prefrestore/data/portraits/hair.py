"""Hair of the head: strands on an ellipsoid around the skull, curtains of long hair, curls, and their light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import MIDDLE
from prefrestore.data.portraits.features import curve
from prefrestore.data.portraits.geometry import Floats, Head
from prefrestore.data.portraits.raster import Raster, over, to_float
from prefrestore.data.portraits.skin import Light
from prefrestore.runtime.seeding import rng

CENTER = np.array([MIDDLE, 192.0, -100.0], np.float32)
RADII = np.array([141.0, 150.0, 118.0], np.float32)
_CELLS = 64
_POINTS = 6
_CURL_POINTS = 7
_VARIANTS = 6
_LOCKS = 152
_WISPS = 110


@dataclass(frozen=True)
class Style:
    """How one style is cut and combed: frame pixels, `part` a direction on the skull, `length` in radians."""

    top: float
    side: float
    part: tuple[float, float, float]
    length: float = 0.7
    strands: int = 1300
    bottom: float = 252.0
    curtain: float = 0.0
    wave: float = 0.0
    curl: float = 0.0
    fringe: float = 0.0
    lift: float = 0.0
    open: float = 0.0
    cover: float = 1.0


STYLES = {
    "bald": Style(0, 0, (0, -1, 0), cover=0.0),
    "receding": Style(7, 8, (0.1, -0.9, -0.45), 0.5, 650, lift=40.0, cover=0.92),
    "cropped": Style(6, 4, (0.0, -0.96, -0.3), 0.16, 1300, bottom=250, cover=0.93),
    "short": Style(17, 9, (0.1, -0.98, -0.2), 0.55, 1300),
    "side-parted": Style(24, 10, (0.52, -0.84, 0.25), 0.85, 1300),
    "textured": Style(32, 9, (0.0, -0.75, -0.66), 0.34, 1000, wave=5.0),
    "short curly": Style(28, 18, (0.0, -1.0, -0.2), 0.3, 500, curl=6.0),
    "afro": Style(62, 62, (0.0, -1.0, -0.2), 0.3, 700, bottom=330, curl=6.5),
    "bob": Style(22, 24, (0.30, -0.95, 0.1), 0.95, 1300, curtain=415.0, wave=2.0, open=24.0),
    "bob with a fringe": Style(24, 24, (0.0, -1.0, -0.1), 1.0, 1300, curtain=410.0, wave=1.5, fringe=188.0),
    "long straight": Style(17, 17, (0.05, -1.0, 0.1), 1.0, 1300, curtain=560.0, wave=2.0, open=30.0),
    "long wavy": Style(26, 32, (0.28, -0.96, 0.1), 0.95, 1300, curtain=560.0, wave=11.0, open=24.0),
    "long curly": Style(36, 46, (0.1, -1.0, 0.0), 0.5, 700, curtain=545.0, wave=9.0, curl=7.5, open=16.0),
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
    side: float
    random: np.random.Generator

    def on_skull(self, directions: Floats, lift: float | Floats = 0.0) -> Floats:
        """Return frame positions [N, 2] of points in unit `directions` [N, 3] on the hair's surface."""
        return self.head.place((CENTER + directions * (self.radii + np.asarray(lift, np.float32))).astype(np.float32))


def wig_of(head: Head, raster: Raster, light: Light, random: np.random.Generator) -> Wig:
    """Return the hair of `head`."""
    style, shape, side = STYLES[head.traits.hair_style], head.traits.shape, 1.0 if random.random() < 0.5 else -1.0
    volume = np.array([style.side, style.top, 0.5 * style.top]) * random.uniform(0.75, 1.25)
    radii = RADII * np.array([1 + 0.035 * shape["face_width"], 1 + 0.03 * shape["forehead"], 1.0]) + volume
    return Wig(style, head, raster, light, radii.astype(np.float32), side, random)


def _hairline(wig: Wig) -> Floats:
    """Return the lower edge of the hair over the forehead, from the left sideburn to the right, in mean coordinates."""
    random, bottom = wig.random, wig.style.bottom
    lift = wig.style.lift + float(np.clip(random.normal(-2.0, 9.0), -16.0, 16.0))
    peak, open_by = random.uniform(-4, 8), wig.style.open
    half = np.array([(134, bottom + 8), (125, bottom - 14), (121, 215), (119, 185),
                     (108 - 0.1 * lift, 160 - 0.45 * lift),
                     (84, 135 - 1.05 * lift - 0.35 * open_by), (48, 119 - 0.75 * lift - 0.8 * open_by),
                     (18, 114 - 0.55 * lift + peak - open_by)])  # fmt: skip
    half += random.normal(0.0, 1.6, half.shape)
    right = half[::-1] * np.array([1.0, 1.0])
    points = np.concatenate([half * np.array([-1.0, 1.0]), right]) + np.array([MIDDLE, 0.0])
    return curve(points.astype(np.float32), 72)


@lru_cache(maxsize=1)
def _waves() -> NDArray[np.float64]:
    """Return sines and cosines of falling weight along the outline, [14, 90]."""
    angle = np.linspace(-2.0, 2.0, 90)
    return np.concatenate([[np.sin(k * angle) / k, np.cos(k * angle) / k] for k in range(2, 9)])


def _outer(wig: Wig) -> Floats:
    """Return the outline of the hair over the skull, from the right side over the top to the left, in the frame."""
    low = math.asin(min((wig.style.bottom - CENTER[1]) / wig.radii[1], 0.95)) + math.pi / 2
    angle = np.linspace(low, -low, 90)
    rough = 1.0 + (0.05 if wig.style.curl else 0.022) * min(1.0, wig.style.top / 20.0) * (
        wig.random.standard_normal(14) @ _waves()
    )
    directions = np.stack([np.sin(angle) * rough, -np.cos(angle) * rough, np.zeros_like(angle)], axis=1)
    return wig.on_skull(directions.astype(np.float32))


def _basis(part: tuple[float, float, float]) -> tuple[Floats, Floats, Floats]:
    pole = np.array(part) / np.linalg.norm(part)
    first = np.cross(pole, [0.0, 0.0, 1.0] if abs(pole[2]) < 0.9 else [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    return pole, first, np.cross(pole, first)


@cache
def _strand_stock(name: str, variant: int) -> tuple[Floats, Floats]:
    """Return strands that leave the parting along great circles: unit directions [N, P, 3] and lifts [N, P, 1].

    Drawn once per style and variant: strands by the thousand cost more to draw anew than to place.
    """
    style, random = STYLES[name], rng("portrait-strands", name, variant)
    pole, first, second = _basis(style.part)
    around, start, reach, sway, drop = random.random((5, style.strands))[..., None]
    around = around * 2 * np.pi
    steps = np.linspace(0, 1, _POINTS)
    along = np.arccos(1.0 - start * 1.25) + style.length * (0.6 + 0.6 * reach) * steps
    turn = around + (0.012 * style.wave + 0.02) * np.sin(along * 5.0 + 3.0 * around) + 0.2 * (sway - 0.5) * along
    ring = np.cos(turn)[..., None] * first + np.sin(turn)[..., None] * second
    directions = np.cos(along)[..., None] * pole + np.sin(along)[..., None] * ring
    lift = (drop * 6.0 - 4.0) * np.ones(_POINTS)
    if style.wave > 4.0 and style.curtain == 0.0:
        lift = lift + 9.0 * steps * (0.2 + sway)
    visible = directions[:, 3, 2] > -0.25
    return directions[visible].astype(np.float32), lift[visible, :, None].astype(np.float32)


def _combed(wig: Wig) -> Floats:
    """Return the strands on the skull, [N, P, 2] in the frame; fewer where the picture is small."""
    directions, lift = _strand_stock(wig.head.traits.hair_style, int(wig.random.integers(0, _VARIANTS)))
    count = int(len(directions) * min(1.0, max(0.36, 1.25 * wig.raster.scale)))
    directions, lift = directions[:count] * np.array([wig.side, 1.0, 1.0], np.float32), lift[:count]
    return wig.on_skull(directions.reshape(-1, 3), lift.reshape(-1, 1)).reshape(-1, _POINTS, 2)


def _curtain_paths(wig: Wig, spread: Floats) -> Floats:
    """Return hanging strands of both sides, [2, N, steps, 2]; `spread` in 0 (at the face) to 1 (outermost), [N]."""
    style, random, count = wig.style, wig.random, len(spread)
    t = np.linspace(0.0, 1.0, 16 if style.wave > 4.0 else 10, dtype=np.float32)
    s = spread[:, None]
    sides = np.array([-1.0, 1.0], np.float32)[:, None, None]
    noise = random.standard_normal((_LOCKS, 2, 2), np.float32)[:count].T[..., None]
    top = 105.0 + 55.0 * s
    y = top + (style.curtain * (1.0 + 0.05 * noise[0] * (style.curtain < 500.0)) - top) * t
    long = style.curtain > 450.0
    outer = wig.radii[0] * (1.0 + (0.06 if long else 0.09) * np.sin(np.pi * t))
    outer = outer + ((18.0 + 0.9 * style.side) * t if long else -10.0 * t**3)
    inner = np.interp(t, [0, 0.22, 0.5, 0.7, 1.0], [88, 121, 122, 112, 104] if long else [88, 121, 121, 114, 96])
    x = inner + (outer - inner) * s**0.8
    bend = np.sin((2 * np.pi / 105.0) * y + (5.0 * s + sides + 0.25 * noise[1])) * np.minimum(1.0, 2.2 * t)
    points = np.empty((2, count, len(t), 3), np.float32)
    points[..., 0] = MIDDLE + sides * (x + style.wave * bend)
    points[..., 1], points[..., 2] = y, -70.0 - 30.0 * s
    placed = wig.head.place(points.reshape(-1, 3))
    sway = 0.4 * (MIDDLE - wig.head.place(np.array([[MIDDLE, 440.0, -60.0]], np.float32))[0, 0])
    placed[:, 0] += np.minimum(np.maximum((placed[:, 1] - 330.0) / 200.0, 0.0), 1.0) * sway
    return placed.reshape(points.shape[:3] + (2,))


def _curls(wig: Wig, centers: Floats) -> Floats:
    """Return small open rings at `centers` [N, 2], [N, 7, 2]."""
    count = len(centers)
    first, size = wig.random.random((2, count, 1), np.float32)
    turn = np.float32(2 * np.pi) * first + np.linspace(0, 4.4, _CURL_POINTS, dtype=np.float32)
    radius = wig.style.curl * (0.6 + 0.7 * size) * np.linspace(1.0, 0.7, _CURL_POINTS, dtype=np.float32)
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
    px = px * wig.side
    half = light.direction + np.array([0.0, 0.0, 1.0], np.float32)
    hx, hy, hz = half / np.linalg.norm(half)
    along = px * nx + py * ny + pz * nz
    tx, ty, tz = px - along * nx, py - along * ny, pz - along * nz
    slant = (hx * tx + hy * ty + hz * tz) ** 2 / (tx * tx + ty * ty + tz * tz + 1e-3)
    sheen = np.maximum(1.0 - slant, 0.0) ** 14 * (0.3 + 0.7 * facing)
    return light.dome[:, None, None] * 0.85 + light.key[:, None, None] * facing, sheen


def _strand_field(raster: Raster, *groups: Floats) -> Floats:
    """Return the brightness of strands around 0 in the window, [h, w]; each group is [N, P, 2], later ones on top."""
    field = np.full(raster.shape, 110, np.uint8)
    thickness = max(1, round(0.9 * raster.scale))
    for lines in groups:
        fixed = raster.fixed(lines)
        for shade, value in enumerate((70, 130, 90, 160, 50, 190, 105, 145, 220)):
            cv2.polylines(field, list(fixed[shade::9]), False, value, thickness, cv2.LINE_AA, 4)
    strength = min(1.0, 0.5 + 0.7 * raster.scale) * (0.45 if groups[-1].shape[1] == _CURL_POINTS else 1.0)
    return (field * np.float32(1 / 255.0) - np.float32(110 / 255.0)) * np.float32(strength)


def _spread(wig: Wig, raster: Raster, cells: Floats) -> list[Floats]:
    """Return coarse planes [N, C, C] at the pixels of the window."""
    size = (wig.raster.size,) * 2
    return [
        raster.of(cv2.resize(np.asarray(plane, np.float32), size, interpolation=cv2.INTER_LINEAR)) for plane in cells
    ]


def _paint(canvas: Floats, wig: Wig, raster: Raster, alpha: Floats, field: Floats) -> None:
    """Blend hair of coverage `alpha` and strands `field` [h, w] over the canvas [3, S, S] in the window `raster`."""
    glow, sheen = _shading(wig)
    base = textures.HAIR[wig.head.traits.hair_color]
    tint = 0.55 * base + 0.16 * wig.light.key * (0.25 + 0.75 * np.sqrt(base))
    cells = np.concatenate([base[:, None, None] * glow, glow, sheen[None]])
    planes = _spread(wig, raster, cells if wig.head.traits.grey > 0.02 else cells[[0, 1, 2, 6]])
    target = raster.of(canvas)
    strand = np.maximum(0.75 + 1.25 * field, 0.15)
    shine = planes[-1] * np.maximum(0.35 + 1.3 * field, 0.0)
    grey = np.clip(wig.head.traits.grey * (0.55 + 1.6 * field), 0.0, 1.0)
    for channel in range(3):
        color = planes[channel]
        if len(planes) > 4:
            color = color + (planes[3 + channel] * textures.GREY_STRAND[channel] - color) * grey
        target[channel] += (color * strand + np.float32(tint[channel]) * shine - target[channel]) * alpha


def draw_back_hair(canvas: Floats, wig: Wig) -> None:
    """Draw what hangs behind neck and shoulders, in the shade."""
    if wig.style.curtain == 0.0:
        return
    raster = wig.raster.box(40.0, 150.0, 472.0, 512.0)
    lines = _curtain_paths(wig, np.linspace(0.05, 1.0, 40, dtype=np.float32))
    mask = raster.blur(raster.fill(np.concatenate([lines[0, -1], lines[1, -1, ::-1]])), 1.5)
    field = _strand_field(raster, lines.reshape(-1, *lines.shape[2:]))
    color = textures.HAIR[wig.head.traits.hair_color]
    color = color + (textures.GREY_STRAND - color) * np.float32(0.55 * wig.head.traits.grey)
    shade = color * (0.45 * wig.light.dome + 0.12 * wig.light.key)
    over(raster.of(canvas), shade[:, None, None] * (0.8 + field), mask)


def _edge_hairs(wig: Wig, hairline: Floats, outer: Floats) -> Floats:
    """Return short hairs that break up the hairline and the silhouette, [N, 3, 2]."""
    random, style = wig.random, wig.style
    many = _WISPS if wig.raster.scale > 0.5 else 64
    length = 7.0 if style.cover < 0.95 or style.top < 10 else 11.0
    middle = wig.on_skull(np.zeros((1, 3), np.float32))[0]
    picks = hairline[random.integers(0, len(hairline) - 1, _WISPS)[:many]]
    inward = picks - (middle + np.array([0.0, 55.0], np.float32))
    inward *= (1.0 / np.sqrt((inward**2).sum(1)))[:, None]
    inward = inward * np.array([0.35, 0.0], np.float32) - np.array([0.0, 0.9], np.float32)
    size = 0.4 + 0.8 * random.random((_WISPS, 1), np.float32)[:many]
    jitter = random.standard_normal((_WISPS, 2), np.float32)[:many]
    low = np.stack([picks - (0.7 * length) * inward * size + 1.5 * jitter, picks, picks + inward * 10.0], axis=1)
    rim = outer[random.integers(0, len(outer) - 1, _WISPS)[:many]]
    away = (rim - middle) * (1.0 / np.sqrt(((rim - middle) ** 2).sum(1)))[:, None]
    turn, fly = random.random((_WISPS, 2), np.float32)[:many].T[..., None]
    along = away[:, ::-1] * np.array([-1.0, 1.0], np.float32) * np.where(turn < 0.5, -10.0, 10.0)
    out = away * (min(6.0, 1.5 + 0.16 * style.top) * (0.2 + 0.8 * fly))
    high = np.stack([rim - 3.0 * away, rim + 0.5 * out + 0.4 * along, rim + out + along], axis=1)
    return np.concatenate([low, high]).astype(np.float32)


def _cap(wig: Wig, raster: Raster) -> tuple[Floats, Floats]:
    """Return coverage [h, w] and strands [N, P, 2] of the hair on the skull."""
    style = wig.style
    hairline, outer = wig.head.project(_hairline(wig), lift=1.0), _outer(wig)
    outline = np.concatenate([outer, hairline])
    part = raster.window(outline, 16.0)
    alpha, hairs = np.zeros(raster.shape, np.float32), part.blank()
    part.strokes(hairs, _edge_hairs(wig, hairline, outer), 0.7, 200, 0.4)
    soft = part.blur(part.fill(outline), 5.0 if style.cover < 0.95 else 4.0) * np.float32(style.cover)
    lines = _combed(wig)
    if style.curl:
        rim = outer[wig.random.integers(0, len(outer), 200)] + wig.random.normal(0, 4.0, (200, 2))
        lines = _curls(wig, np.concatenate([lines[:, 2], rim]).astype(np.float32))
        tufts = part.blank()
        part.strokes(tufts, lines[-200:, :4], 9.0, 255)
        soft = np.maximum(soft, part.blur(to_float(tufts), 1.5))
    part.of(alpha)[...] = np.maximum(soft, to_float(hairs))
    return alpha, lines


def _fringe(wig: Wig, raster: Raster) -> tuple[Floats, Floats]:
    """Return coverage and strands of a fringe over the forehead."""
    random, low = wig.random, wig.style.fringe
    x = np.linspace(-118, 118, 200) + random.normal(0, 2.0, 200)
    uneven = 3.0 * np.sin(x / random.uniform(12, 20) + random.uniform(0, 6)) + random.normal(0, 2.2, 200)
    ends = low + uneven + 10.0 * (np.abs(x) / 118) ** 3
    t = np.linspace(0, 1, _POINTS)[None]
    across = x[:, None] * (0.55 + 0.45 * np.sqrt(t)) + random.normal(0, 4.0, (200, 1)) * (1 - t)
    points = np.stack([MIDDLE + across, 62.0 + (ends[:, None] - 62.0) * t], axis=-1).astype(np.float32)
    lines = wig.head.project(points.reshape(-1, 2), lift=7.0).reshape(points.shape)
    mask = raster.blank()
    raster.strokes(mask, lines, 4.5, 255)
    return to_float(mask), lines


def _curtains(wig: Wig, raster: Raster) -> tuple[Floats, Floats]:
    """Return coverage and strands of the hair that hangs beside the face."""
    spread = np.concatenate(
        [[0.0, 1.0], wig.random.random(_LOCKS - 2, np.float32)[: None if raster.scale > 0.5 else 72]]
    )
    paths = _curtain_paths(wig, spread.astype(np.float32))
    fills = [np.concatenate([side[0, :-2], side[1, -3::-1]]) for side in paths]
    strands = paths.reshape(-1, *paths.shape[2:])
    loose = raster.blank()
    raster.strokes(loose, strands, 4.0, 255)
    if wig.style.curl:
        at = strands[wig.random.integers(0, len(strands), 420), wig.random.integers(2, strands.shape[1], 420)]
        strands = _curls(wig, at + wig.random.normal(0, 5.0, at.shape).astype(np.float32))
        raster.strokes(loose, strands, 5.0, 255)
    return raster.blur(np.maximum(raster.fill(*fills), to_float(loose)), 1.2), strands


def _shadow(canvas: Floats, wig: Wig, alpha: Floats, on: Floats) -> None:
    shift = np.array([-wig.light.direction[0] * 9.0, 5.0 - 9.0 * wig.light.direction[1]]) * wig.raster.scale
    moved = cv2.warpAffine(
        wig.raster.blur(alpha, 5.0), np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32), alpha.shape[::-1]
    )
    canvas *= 1.0 - 0.50 * moved * on


def draw_hair(canvas: Floats, wig: Wig, skin: Floats) -> None:
    """Draw the hair in front; `skin` [S, S] is where its shadow falls."""
    style = wig.style
    if style.cover == 0.0:
        return
    raster = wig.raster
    layers = [_cap(wig, raster)]
    if style.curtain:
        layers.append(_curtains(wig, raster))
    if style.fringe:
        layers.append(_fringe(wig, raster))
    field = _strand_field(raster, *[lines for _, lines in layers])
    alpha = layers[0][0]
    alpha = np.minimum(np.maximum(alpha + field * (6.0 * alpha * (1.0 - alpha)), 0.0), 1.0)
    for cover, _ in layers[1:]:
        alpha = np.maximum(alpha, cover)
    face = raster.box(90.0, 0.0, 422.0, 480.0)
    _shadow(face.of(canvas), wig, face.of(alpha), face.of(skin))
    columns, rows = np.flatnonzero(alpha.max(0)), np.flatnonzero(alpha.max(1))
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    tight = Raster(raster.size, top, left, (bottom + 1 - top, right + 1 - left))
    _paint(canvas, wig, tight, tight.of(alpha), tight.of(field))


__all__ = ["STYLES", "draw_back_hair", "draw_hair", "wig_of"]
