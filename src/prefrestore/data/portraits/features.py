"""Eyes, brows, mouth, nostrils and ears."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import MIDDLE, mean_landmarks
from prefrestore.data.portraits.geometry import GAP, Floats, Head, smoothstep
from prefrestore.data.portraits.raster import Raster, linear, over, to_float
from prefrestore.data.portraits.skin import Light, Lit
from prefrestore.runtime.seeding import rng

_DARK = linear(26, 18, 16)
_SCLERA, _CARUNCLE, _AMBER = (
    linear(*color)[:, None, None] for color in ((226, 219, 214), (190, 116, 106), (120, 80, 40))
)
_OUTER = np.stack([np.linspace(0.96, 0.02, 24), np.linspace(0.04, 0.98, 24)]).astype(np.float32)
_LASH_LEAN = np.array([[-1.0], [1.0]], np.float32) * (1.6 * _OUTER - np.float32(0.5))
_LASH_SIZE = np.float32(0.55) + np.float32(0.6) * _OUTER
_EYE_PARTS = (slice(36, 42), slice(42, 48))
_LID_ARCH = np.array([0.0, 1.0], np.float32) * (np.sin(np.linspace(0.25, 2.9, 24))[:, None] ** 0.7).astype(np.float32)


@lru_cache(maxsize=16)
def _spline(knots: int, samples: int) -> NDArray[np.float64]:
    """Return the matrix [samples, knots] of the natural cubic spline through evenly spaced knots."""
    return CubicSpline(np.linspace(0, 1, knots), np.eye(knots), bc_type="natural")(np.linspace(0, 1, samples))


def curve(points: Floats, samples: int = 24) -> Floats:
    """Return a smooth curve through `points` [N, 2], [samples, 2]."""
    return (_spline(len(points), samples) @ points).astype(np.float32)


def _operator(knots: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """Return the matrix that takes the 68 landmarks to smooth curves of 24 points through the given ones."""
    matrix = np.zeros((len(knots), 24, 68))
    for row, indices in zip(matrix, knots, strict=True):
        row[:, list(indices)] = _spline(len(indices), 24)
    return matrix.reshape(-1, 68)


@lru_cache(maxsize=1)
def _lids() -> NDArray[np.float64]:
    return _operator(((36, 37, 38, 39), (36, 41, 40, 39), (42, 43, 44, 45), (42, 47, 46, 45)))


@lru_cache(maxsize=1)
def _lips() -> NDArray[np.float64]:
    return _operator((tuple(range(48, 55)), (48, 59, 58, 57, 56, 55, 54), tuple(range(60, 65)), (60, 67, 66, 65, 64)))


def lid_curves(landmarks: Floats) -> Floats:
    """Return the lids from left to right, [2 eyes, upper and lower, 24, 2]."""
    return (_lids() @ landmarks).astype(np.float32).reshape(2, 2, 24, 2)


def lip_outlines(landmarks: Floats) -> Floats:
    """Return the lips from left to right, [4, 24, 2]: upper outer, lower outer, upper inner, lower inner."""
    return (_lips() @ landmarks).astype(np.float32).reshape(4, 24, 2)


def _ring(upper: Floats, lower: Floats) -> Floats:
    return np.concatenate([upper, lower[::-1]])


@dataclass(frozen=True)
class Paper:
    """What the feature painters draw on: planes [3, h, w] that cover the window `raster`."""

    planes: Floats
    raster: Raster

    def window(self, points: Floats, margin: float) -> Paper:
        """Return the part around frame `points`; drawing on it draws on the whole."""
        inner = self.raster.window(points, margin)
        return Paper(inner.cut(self.planes, self.raster), inner)

    def darken(self, loss: Floats) -> None:
        """Take away the share `loss` [h, w] of the colour."""
        np.multiply(self.planes, 1.0 - loss, out=self.planes)


def paint_lips(albedo: Paper, head: Head, outlines: Floats, random: np.random.Generator) -> Floats:
    """Paint the lips into the albedo and return their mask over the whole albedo, [h, w]."""
    whole, paper = albedo.raster, albedo.window(outlines[:2].reshape(-1, 2), 8.0)
    raster = paper.raster
    top, bottom, inner_top, inner_bottom = outlines
    mask = raster.blur(raster.fill(_ring(top, inner_top), _ring(inner_bottom, bottom)), 1.2)
    skin = textures.skin_color(head.traits.melanin, 0.0)
    strength = random.uniform(0.2, 1.0)
    tint = np.array([0.94 - 0.14 * strength, 0.66 - 0.24 * strength, 0.66 - 0.17 * strength], np.float32)
    lines = raster.blank()
    at = (random.uniform(0.04, 0.96, 46) * 23).astype(int)
    seam, lower = 0.5 * (inner_top + inner_bottom), (random.random(46) < 0.6)[:, None]
    ends = np.where(lower, bottom[at], top[at]) + random.normal(0.0, 1.0, (46, 2))
    raster.strokes(lines, np.stack([seam[at], 0.2 * seam[at] + 0.8 * ends], axis=1).astype(np.float32), 0.8, 150)
    over(paper.planes, skin * tint, mask * np.float32(0.85))
    paper.darken(0.20 * mask * to_float(lines))
    full = np.zeros(whole.shape, np.float32)
    raster.cut(full, whole)[...] = mask
    return full


def paint_nose(albedo: Paper, head: Head, landmarks: Floats) -> None:
    """Paint nostrils and the creases around the wings of the nose into the albedo."""
    paper = albedo.window(landmarks[30:36], 24.0)
    raster = paper.raster
    lines = head.project(_mean_nostrils().reshape(-1, 2)).reshape(2, 44, 2)
    shade = raster.blank()
    raster.strokes(shade, lines[:, 20:], 2.4, 60)
    cv2.fillPoly(shade, list(raster.fixed(lines[:, :20])), 215, cv2.LINE_AA, 4)
    paper.darken(to_float(raster.smear(shade, 1.7)))


@lru_cache(maxsize=1)
def _mean_nostrils() -> Floats:
    """Return per side the outline of the nostril (20 points) and the crease of the wing (24), [2, 44, 2]."""
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    x, y = 7.6 * np.cos(turn), 3.6 * np.sin(turn)
    hole = np.stack([13.5 + 0.93 * x - 0.37 * y, 331.5 + 0.37 * x + 0.93 * y], axis=1)
    wing = curve(np.array([(33, 311), (38, 318), (37.5, 326), (32, 332)], np.float32))
    half = np.concatenate([hole, wing]).astype(np.float32)
    sides = np.array([[-1.0, 1.0], [1.0, 1.0]], np.float32)[:, None]
    return half * sides + np.array([MIDDLE, 0.0], np.float32)


def _brow_strokes(brows: Floats, weight: float, random: np.random.Generator) -> Floats:
    """Return hairs of both brows, [N, 3, 2]; `brows` [2, 24, 2] are their lines from the inner to the outer end."""
    count = 120
    draw = random.random((4, 2, count), np.float32)
    along = draw[0]
    center = brows[np.arange(2)[:, None], (along * 23).astype(int)]
    taper = np.minimum(1.0, 0.6 + 1.6 * along) * smoothstep(1.12, 0.45, along)
    across = (2.0 * draw[1] - 1.0) * (5.2 + 1.9 * weight) * taper
    slant = np.interp(along, [0, 0.25, 0.6, 1], [70, 36, 10, -16]).astype(np.float32)
    lean = np.deg2rad(slant + 30.0 * (draw[2] - 0.5) - 3.0 * across)
    length = (11.0 + 10.0 * along * (0.9 - along)) * (0.7 + 0.45 * draw[3])
    side = np.array([[-1.0], [1.0]], np.float32)
    step = np.stack([side * np.cos(lean), -np.sin(lean)], axis=-1) * length[..., None]
    root = center - 0.4 * step
    root[..., 1] += across + 2.5
    middle = root + 0.55 * step
    middle[..., 1] -= 0.08 * length
    return np.stack([root, middle, root + step], axis=2).reshape(-1, 3, 2)


@lru_cache(maxsize=1)
def _brows() -> NDArray[np.float64]:
    return _operator(((21, 20, 19, 18, 17), (22, 23, 24, 25, 26)))


def paint_brows(albedo: Paper, head: Head, landmarks: Floats, random: np.random.Generator) -> None:
    """Paint both brows into the albedo, hair by hair."""
    traits, paper = head.traits, albedo.window(landmarks[17:27], 20.0)
    raster = paper.raster
    color = textures.HAIR[traits.hair_color] * textures.BROW_SHADE[traits.hair_color]
    weight = float(np.clip(traits.shape["brow_weight"], -1.5, 1.8))
    mask = raster.blank()
    brows = (_brows() @ landmarks).astype(np.float32).reshape(2, 24, 2)
    ground = 255 * (0.64 + 0.12 * weight)
    raster.strokes(mask, brows[:, :20] + np.array([0.0, 2.5], np.float32), 8.0 + 2.5 * weight, ground)
    mask = raster.smear(mask, 3.4)
    raster.strokes(mask, _brow_strokes(brows, weight, random), 0.9, 228 + 14 * weight, 0.8)
    over(paper.planes, color, to_float(mask))


def _lashes(lids: Floats, length: float, random: np.random.Generator) -> Floats:
    """Return lashes along the two lids [2, 24, 2], [N, 3, 2]; they lean outward, and up where `length` is above 0."""
    noise = random.standard_normal((2, 2, 24), np.float32)
    lean, size = _LASH_LEAN + 0.12 * noise[0], _LASH_SIZE * (length * (0.95 + 0.14 * noise[1]))
    lines = np.repeat(lids[:, :, None], 3, axis=2)
    side = lean * np.abs(size)
    lines[:, :, 1, 0] += 0.8 * side
    lines[:, :, 1, 1] -= 0.45 * size
    lines[:, :, 2, 0] += side
    lines[:, :, 2, 1] -= size
    return lines.reshape(-1, 3, 2)


@lru_cache(maxsize=1)
def _fibers() -> NDArray[np.float64]:
    """Return the brightness of the iris's fibres by direction, four patterns of 97 steps."""
    pattern = rng("portrait-iris").random((4, 97))
    pattern[:, -1] = pattern[:, 0]
    return pattern


def _iris(dx: Floats, dy: Floats, head: Head, light: Light) -> tuple[Floats, Floats]:
    """Return colour [3, h, w] and coverage of an iris at offsets from its centre in units of its radius."""
    radius = np.sqrt(dx * dx + dy * dy)
    angle = (np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 96.0
    fibers = np.interp(angle, np.arange(97), _fibers()[int(head.traits.age * 100.0) % 4])
    color = textures.EYES[head.traits.eye_color][:, None, None]
    shade = (0.55 + 0.75 * fibers * smoothstep(0.3, 0.6, radius)) * (1.0 - 0.75 * smoothstep(0.70, 1.0, radius))
    shade = shade * (1.0 - 0.4 * (dx * light.direction[0] + dy * light.direction[1])) * 1.1
    ring = smoothstep(0.65, 0.40, radius) * fibers
    tinted = color * shade + _AMBER * (0.25 * ring)
    return tinted * smoothstep(0.37, 0.44, radius) + 0.004, smoothstep(1.06, 0.94, radius)


def _eyeballs(head: Head, landmarks: Floats, lids: Floats, raster: Raster, light: Light) -> Floats:
    """Return both eyeballs as if without lids, [3, h, w], under even light."""
    eyes = landmarks[36:48].reshape(2, 6, 2)
    middle = 0.5 * (eyes[:, 0] + eyes[:, 3])
    x, y = raster.axes()
    side = (x[0] > middle[:, 0].mean()).astype(int)
    traits = head.traits
    center = 0.4 * middle + 0.6 * eyes.mean(1) + np.array([-0.035 * traits.yaw, -1.6 - 0.05 * traits.pitch], np.float32)
    radius = np.float32(12.0 + 0.4 * traits.shape["eye_size"])
    dx, dy = (x - center[side, 0]) / radius, (y - center[side, 1]) / radius
    width = np.hypot(*(eyes[:, 3] - eyes[:, 0]).T)
    round_off = np.minimum(((x - middle[side, 0]) / (0.62 * width[side])) ** 2, 1.0)
    pink = np.array([0.0, 0.12, 0.12], np.float32)[:, None, None]
    ball = _SCLERA * ((1.0 - 0.48 * round_off) * (1.0 - pink * round_off))
    iris, inside = _iris(dx, dy, head, light)
    ball = ball + (iris - ball) * inside
    inner = np.stack([eyes[0, 3], eyes[1, 0]])
    corner = np.exp(-(((x - inner[side, 0]) / 5.5) ** 2) - ((y - inner[side, 1]) / 6.0) ** 2)
    ball = ball + (_CARUNCLE - ball) * (0.85 * corner)
    lid = np.interp(x[0], np.concatenate(lids[:, 0, :, 0]), np.concatenate(lids[:, 0, :, 1]))
    ball = ball * (0.28 + 0.72 * smoothstep(-2.5, 9.0, y - lid))
    spark = light.direction[:2] * np.array([0.45, 0.55], np.float32) + np.array([0.0, -0.12], np.float32)
    ball = ball + 1.2 * np.exp(-(((dx - spark[0]) / 0.18) ** 2) - ((dy - spark[1]) / 0.20) ** 2)
    return ball + 0.09 * np.exp(-(((dx + spark[0]) / 0.35) ** 2) - ((dy + spark[1]) / 0.25) ** 2)


def _eye_glow(canvas: Paper, lit: Lit, landmarks: Floats) -> Floats:
    """Return the light on the eyes, [3]: that under them, evened."""
    at = [canvas.raster.at(landmarks[part].mean(0) + np.array([0.0, 17.0], np.float32)) for part in _EYE_PARTS]
    return 0.55 * np.mean([lit.diffuse[:, row, column] for row, column in at], axis=0) + np.float32(0.34)


def draw_eyes(
    canvas: Paper, head: Head, landmarks: Floats, scene: tuple[Lit, Light], random: np.random.Generator
) -> None:
    """Draw eyeballs, lids and lashes onto the lit head."""
    traits, paper, (lit, light) = head.traits, canvas.window(landmarks[36:48], 20.0), scene
    raster, lids = paper.raster, lid_curves(landmarks)
    strength = 0.6 - 0.25 * min(max(traits.shape["brow_weight"], -1.4), 1.4)
    inside = paper.window(landmarks[36:48], 3.0)
    ball = _eyeballs(head, landmarks, lids, inside.raster, light) * _eye_glow(canvas, lit, landmarks)[:, None, None]
    over(inside.planes, ball.astype(np.float32), inside.raster.fill(*[_ring(upper, lower) for upper, lower in lids]))
    dark = raster.blank()
    raise_by = (7.5 - 2.5 * smoothstep(40.0, 75.0, traits.age)) * _LID_ARCH
    raster.strokes(dark, (lids[:, 0] - raise_by)[:, 1:-1], 2.6, 105)
    dark = raster.smear(dark, 1.3)
    raster.strokes(dark, lids[:, 0], 2.2 + 1.2 * strength, 225)
    raster.strokes(dark, [lids[0, 1, 1:-6], lids[1, 1, 6:-1]], 0.9, 80 + 50 * strength)
    dark = raster.smear(dark, 0.7)
    raster.strokes(dark, _lashes(lids[:, 0], 5.0 + 2.5 * strength, random), 0.75, 150 + 60 * strength, 0.5)
    raster.strokes(dark, _lashes(lids[:, 1] + np.array([0.0, 1.5], np.float32), -3.4, random), 0.55, 75, 0.5)
    over(paper.planes, _DARK, to_float(dark))


def draw_mouth(canvas: Paper, head: Head, outlines: Floats, lit: Lit) -> None:
    """Draw what an open mouth shows, or the line between closed lips."""
    paper = canvas.window(outlines.reshape(-1, 2), 6.0)
    raster, (_, lower, top, bottom) = paper.raster, outlines
    seam = raster.blank()
    if GAP[head.traits.expression] < 4.0:
        raster.strokes(seam, [0.5 * (top + bottom)], 2.6, 255)
        color = linear(70, 28, 26) * (1.0 - 0.6 * head.traits.melanin)
        over(paper.planes, color, 0.75 * raster.blur(to_float(seam), 1.1))
        return
    hole = raster.fill(_ring(top, bottom))
    over(paper.planes, linear(58, 18, 18), raster.blur(hole, 0.7))
    row, column = canvas.raster.at(lower[12])
    glow = 0.55 + 0.38 * np.clip(lit.diffuse[:, row, column], 0.3, 1.1)
    _draw_teeth(paper, (top, hole), glow, GAP[head.traits.expression])
    raster.strokes(seam, [top], 2.4, 200)
    over(paper.planes, linear(50, 18, 16), 0.5 * raster.blur(to_float(seam), 1.2))


def _draw_teeth(paper: Paper, opening: tuple[Floats, Floats], glow: Floats, gap: float) -> None:
    """Draw the upper teeth under the lip's edge, inside the mouth's mask; `opening` holds both."""
    raster, (top, hole) = paper.raster, opening
    along = np.linspace(0.0, 1.0, 24)[:, None]
    show = min(0.94 * gap, 12.5)
    edge = top + np.array([0.0, 1.0]) * show * (np.sin(np.pi * along) ** 0.45) * (0.97 + 0.03 * np.cos(along * 44.0))
    teeth = raster.fill(_ring(top, edge.astype(np.float32))) * hole
    gaps = raster.blank()
    at = (np.array([0.14, 0.2, 0.27, 0.345, 0.42, 0.5, 0.58, 0.655, 0.73, 0.8, 0.86]) * 23).round().astype(int)
    raster.strokes(gaps, np.stack([top[at], edge[at]], axis=1).astype(np.float32), 1.0, 110)
    x, _ = raster.axes()
    middle, half = 0.5 * (top[0, 0] + top[-1, 0]), 0.5 * (top[-1, 0] - top[0, 0])
    round_off = 1.0 - 0.62 * np.clip(np.abs(x - middle) / half, 0, 1) ** 2
    ivory = linear(238, 231, 218)[:, None, None] * glow[:, None, None] * round_off * (1.0 - 0.42 * to_float(gaps))
    over(paper.planes, ivory.astype(np.float32), teeth * np.float32(0.97))


_EAR = np.array(
    [(-10, 244), (2, 234), (12, 231), (19, 239), (20, 258), (16, 281), (11, 300), (4, 316), (-6, 320), (-14, 310)]
)
_CONCHA = np.array([(-3, 256), (6, 247), (12, 255), (10, 274), (3, 290), (-4, 294)])


def _ear_outlines(head: Head) -> Floats:
    """Return rim and hollow of the left and of the right ear, [2, 2, 40, 2] in the frame."""
    traits = head.traits
    grow = 1.0 + 0.10 * traits.shape["ear_size"] + 0.08 * smoothstep(40.0, 80.0, traits.age)
    points = _mean_ear()
    out = 140.0 + 4.9 * traits.shape["face_width"] + grow * points[..., 0]
    rows, depth = 278.0 + grow * (points[..., 1] - 278.0), 0.4 * points[..., 0] - 104.0
    both = np.stack([np.stack([MIDDLE + sign * out, rows, depth], axis=-1) for sign in (-1.0, 1.0)])
    return head.place(both.reshape(-1, 3).astype(np.float32)).reshape(2, 2, 40, 2)


@lru_cache(maxsize=1)
def _mean_ear() -> Floats:
    return np.stack([curve(np.concatenate([outline, outline[:1]]), 40) for outline in (_EAR, _CONCHA)])


def draw_ears(canvas: Paper, head: Head, light: Light) -> None:
    """Draw both ears behind the head."""
    traits = head.traits
    skin = textures.skin_color(traits.melanin, traits.undertone) * np.array([1.0, 0.85, 0.85], np.float32)
    for (rim, concha), sign in zip(_ear_outlines(head), (-1.0, 1.0), strict=True):
        paper = canvas.window(rim, 4.0)
        raster = paper.raster
        facing = max(0.0, float(0.55 * sign * light.direction[0] + 0.8 * light.direction[2])) * 0.8 + 0.2
        tone = (skin * (light.dome * 0.9 + light.key * facing)).astype(np.float32)
        ear, edge = raster.fill(rim), raster.blank()
        raster.strokes(edge, [rim[4:26]], 4.0, 255)
        over(paper.planes, tone, ear)
        over(paper.planes, tone * np.float32(1.2), 0.6 * raster.blur(to_float(edge), 2.0) * ear)
        hollow = raster.blur(raster.fill(concha), 2.6) * ear
        over(paper.planes, tone * np.array([0.44, 0.32, 0.30], np.float32), 0.75 * hollow)


@lru_cache(maxsize=1)
def mean_outline() -> Floats:
    """Return the outline of the mean head, jaw and skull, [88, 2]."""
    skull = np.array([(399, 247), (399, 200), (394, 160), (379, 110), (345, 70), (300, 46), (256, 40)], np.float32)
    skull = np.concatenate(
        [skull, (skull * np.array([-1, 1], np.float32) + np.array([2 * MIDDLE, 0], np.float32))[-2::-1]]
    )
    return np.concatenate([curve(mean_landmarks()[:17], 48), curve(skull, 40)])
