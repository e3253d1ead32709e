"""Eyes, brows, mouth, nostrils and ears."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import MIDDLE, mean_landmarks
from prefrestore.data.portraits.geometry import GAP, Floats, Head, smoothstep
from prefrestore.data.portraits.raster import Raster, linear, over, to_float
from prefrestore.data.portraits.skin import Light, Lit
from prefrestore.runtime.seeding import rng


@lru_cache(maxsize=16)
def _spline(knots: int, samples: int) -> NDArray[np.float64]:
    """Return the matrix [samples, knots] of the natural cubic spline through evenly spaced knots."""
    return CubicSpline(np.linspace(0, 1, knots), np.eye(knots), bc_type="natural")(np.linspace(0, 1, samples))


def curve(points: Floats, samples: int = 24) -> Floats:
    """Return a smooth curve through `points` [N, 2], [samples, 2]."""
    return (_spline(len(points), samples) @ points).astype(np.float32)


def lid_curves(eye: Floats) -> tuple[Floats, Floats]:
    """Return upper and lower lid, both from the eye's first corner to its other, [24, 2] each."""
    return curve(eye[:4]), curve(eye[[0, 5, 4, 3]])


def lip_outlines(landmarks: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the lips' curves from the left corner to the right: upper outer, lower outer, upper inner, lower inner."""
    return (curve(landmarks[48:55]), curve(landmarks[[48, 59, 58, 57, 56, 55, 54]]),
            curve(landmarks[60:65]), curve(landmarks[[60, 67, 66, 65, 64]]))  # fmt: skip


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


def paint_lips(albedo: Paper, head: Head, landmarks: Floats, random: np.random.Generator) -> Floats:
    """Paint the lips into the albedo and return their mask over the whole albedo, [h, w]."""
    whole, paper = albedo.raster, albedo.window(landmarks[48:60], 8.0)
    raster = paper.raster
    top, bottom, inner_top, inner_bottom = lip_outlines(landmarks)
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
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    holes, creases = [], raster.blank()
    for sign in (-1, 1):
        x, y = 7.6 * np.cos(turn), 3.6 * np.sin(turn)
        ring = np.stack([MIDDLE + sign * (13.5 + 0.93 * x - 0.37 * y), 331.5 + 0.37 * x + 0.93 * y], axis=1)
        holes.append(head.project(ring.astype(np.float32)))
        wing = np.array([(33, 311), (38, 318), (37.5, 326), (32, 332)], np.float32)
        wing[:, 0] = MIDDLE + sign * wing[:, 0]
        raster.strokes(creases, [head.project(curve(wing))], 2.4, 150)
    paper.darken(0.86 * raster.blur(raster.fill(*holes), 1.5))
    paper.darken(0.42 * raster.blur(to_float(creases), 1.9))


def _brow_strokes(brow: Floats, weight: float, random: np.random.Generator) -> Floats:
    """Return hairs of one brow given from its inner to its outer end, [N, 3, 2]."""
    count = 150
    along = random.random(count)
    line = curve(brow, 64)
    center = line[(along * 63).astype(int)]
    taper = np.minimum(1.0, 0.6 + 1.6 * along) * smoothstep(1.12, 0.45, along)
    across = random.uniform(-1.0, 1.0, count) * (5.2 + 1.9 * weight) * taper
    sign = np.sign(brow[-1, 0] - brow[0, 0])
    slant = np.interp(along, [0, 0.25, 0.6, 1], [70, 36, 10, -16])
    lean = np.deg2rad(slant + random.normal(0, 9, count) - 3.0 * across)
    length = np.interp(along, [0, 0.4, 1], [11, 14, 10]) * random.uniform(0.7, 1.15, count)
    step = np.stack([sign * np.cos(lean), -np.sin(lean)], axis=1) * length[:, None]
    root = center + np.stack([np.zeros(count), across + 2.5], axis=1) - 0.4 * step
    bend = np.stack([np.zeros(count), 0.08 * length], axis=1)
    return np.stack([root, root + 0.55 * step - bend, root + step], axis=1).astype(np.float32)


def paint_brows(albedo: Paper, head: Head, landmarks: Floats, random: np.random.Generator) -> None:
    """Paint both brows into the albedo, hair by hair."""
    traits, paper = head.traits, albedo.window(landmarks[17:27], 20.0)
    raster = paper.raster
    color = textures.HAIR[traits.hair_color] * textures.BROW_SHADE[traits.hair_color]
    weight = float(np.clip(traits.shape["brow_weight"], -1.5, 1.8))
    mask, shadow = raster.blank(), raster.blank()
    for brow in (landmarks[17:22][::-1], landmarks[22:27]):
        raster.strokes(shadow, [curve(brow)[:20] + np.array([0.0, 2.5], np.float32)], 8.0 + 2.5 * weight, 255)
        raster.strokes(mask, _brow_strokes(brow, weight, random), 0.9, 240)
    soft = raster.blur(to_float(shadow), 3.4) * (0.55 + 0.13 * weight)
    over(paper.planes, color, np.minimum(np.maximum(to_float(mask) * (0.80 + 0.1 * weight), soft), 0.95))


def _lashes(lid: Floats, outward: float, length: float, random: np.random.Generator) -> Floats:
    """Return lashes along a lid, [N, 3, 2]; `outward` is the direction of the outer corner, `length` > 0 goes up."""
    count = 34
    along = np.linspace(0.06, 0.98, count) + random.normal(0, 0.012, count)
    root = lid[np.clip((along * (len(lid) - 1)).round().astype(int), 0, len(lid) - 1)]
    outer = along if outward > 0 else 1.0 - along
    lean = outward * (-0.5 + 1.6 * outer) + random.normal(0, 0.12, count)
    size = length * (0.55 + 0.6 * outer) * random.uniform(0.75, 1.15, count)
    tip = root + np.stack([lean * np.abs(size), -size], axis=1)
    bend = root + 0.55 * (tip - root) + np.stack([0.25 * lean * np.abs(size), 0.10 * size], axis=1)
    return np.stack([root, bend, tip], axis=1).astype(np.float32)


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
    tinted = color * shade + linear(120, 80, 40)[:, None, None] * (0.25 * ring)
    return tinted * smoothstep(0.37, 0.44, radius) + 0.004, smoothstep(1.06, 0.94, radius)


def _eyeball(head: Head, eye: Floats, raster: Raster, light: Light, glow: Floats) -> Floats:
    """Return one eyeball as if without lids, [3, h, w]; `eye` are its six landmarks."""
    upper, _ = lid_curves(eye)
    x, y = raster.axes()
    middle, width = 0.5 * (eye[0] + eye[3]), float(np.hypot(*(eye[3] - eye[0])))
    gaze = np.array([-0.035 * head.traits.yaw, -0.05 * head.traits.pitch])
    center = 0.4 * middle + 0.6 * eye.mean(0) + gaze + np.array([0.0, -1.6])
    radius = 12.0 + 0.4 * head.traits.shape["eye_size"]
    dx, dy = (x - center[0]) / radius, (y - center[1]) / radius
    round_off = np.minimum(((x - middle[0]) / (0.62 * width)) ** 2, 1.0)
    pink = np.array([0.0, 0.12, 0.12])[:, None, None]
    ball = linear(226, 219, 214)[:, None, None] * ((1.0 - 0.48 * round_off) * (1.0 - pink * round_off))
    iris, inside = _iris(dx, dy, head, light)
    ball = ball + (iris - ball) * inside
    inner = eye[3] if middle[0] < head.place(np.array([[MIDDLE, 240.0, 20.0]], np.float32))[0, 0] else eye[0]
    corner = np.exp(-(((x - inner[0]) / 5.5) ** 2) - ((y - inner[1]) / 6.0) ** 2)
    ball = ball + (linear(190, 116, 106)[:, None, None] - ball) * (0.85 * corner)
    under_lid = smoothstep(-2.5, 9.0, y - np.interp(x, upper[:, 0], upper[:, 1]))
    ball = ball * (0.28 + 0.72 * under_lid) * glow[:, None, None]
    spark = light.direction[:2] * np.array([0.45, 0.55]) + np.array([0.0, -0.12])
    ball = ball + 0.95 * np.exp(-(((dx - spark[0]) / 0.18) ** 2) - ((dy - spark[1]) / 0.20) ** 2)
    return ball + 0.07 * np.exp(-(((dx + spark[0]) / 0.35) ** 2) - ((dy + spark[1]) / 0.25) ** 2)


def draw_eyes(canvas: Paper, head: Head, landmarks: Floats, scene: tuple[Lit, Light], random: np.random.Generator) -> None:
    """Draw eyeballs, lids and lashes onto the lit head."""
    traits, paper, (lit, light) = head.traits, canvas.window(landmarks[36:48], 20.0), scene
    raster = paper.raster
    lashes, lines, crease, rims = (raster.blank() for _ in range(4))
    strength = 0.6 - 0.25 * np.clip(traits.shape["brow_weight"], -1.4, 1.4)
    droop = smoothstep(40, 75, traits.age)
    for eye, outward in ((landmarks[36:42], -1.0), (landmarks[42:48], 1.0)):
        upper, lower = lid_curves(eye)
        row, column = canvas.raster.at(eye.mean(0) + np.array([0.0, 17.0], np.float32))
        glow = 0.55 * lit.diffuse[:, row - 1 : row + 2, column - 1 : column + 2].mean((1, 2)) + 0.34
        local = paper.window(eye, 2.0)
        ball = _eyeball(head, eye, local.raster, light, glow).astype(np.float32)
        over(local.planes, ball, local.raster.fill(_ring(upper, lower)))
        raster.strokes(rims, [lower + np.array([0.0, 0.6], np.float32)], 1.6, 200)
        raster.strokes(lines, [upper], 2.2 + 1.2 * strength, 240)
        raster.strokes(lines, [lower[6:-1] if outward > 0 else lower[1:-6]], 0.9, 90 + 60 * strength)
        raster.strokes(lashes, _lashes(upper, outward, 5.0 + 2.5 * strength, random), 0.75, 225)
        raster.strokes(lashes, _lashes(lower + np.array([0.0, 1.5], np.float32), outward, -3.4, random), 0.55, 110)
        fold = upper + np.array([0.0, -1.0]) * (7.5 - 2.5 * droop) * np.sin(np.linspace(0.25, 2.9, 24))[:, None] ** 0.7
        raster.strokes(crease, [fold[1:-1].astype(np.float32)], 2.0, 220)
    dark = linear(26, 18, 16)
    over(paper.planes, dark, 0.5 * raster.blur(to_float(crease), 1.6))
    over(paper.planes, linear(206, 150, 138) * 0.75 * (1.0 - 0.4 * traits.melanin), 0.35 * to_float(rims))
    over(paper.planes, dark, 0.88 * raster.blur(to_float(lines), 0.8))
    over(paper.planes, dark, np.float32(0.5 + 0.3 * strength) * to_float(lashes))


def draw_mouth(canvas: Paper, head: Head, landmarks: Floats, lit: Lit) -> None:
    """Draw what an open mouth shows, or the line between closed lips."""
    paper = canvas.window(landmarks[48:68], 6.0)
    raster, (_, _, top, bottom) = paper.raster, lip_outlines(landmarks)
    seam = raster.blank()
    if GAP[head.traits.expression] < 4.0:
        raster.strokes(seam, [0.5 * (top + bottom)], 2.6, 255)
        color = linear(70, 28, 26) * (1.0 - 0.6 * head.traits.melanin)
        over(paper.planes, color, 0.75 * raster.blur(to_float(seam), 1.1))
        return
    hole = raster.fill(_ring(top, bottom))
    over(paper.planes, linear(58, 18, 18), raster.blur(hole, 0.7))
    row, column = canvas.raster.at(landmarks[57])
    glow = 0.55 + 0.38 * np.clip(lit.diffuse[:, row, column], 0.3, 1.1)
    _draw_teeth(paper, (top, hole), landmarks, glow, GAP[head.traits.expression])
    raster.strokes(seam, [top], 2.4, 200)
    over(paper.planes, linear(50, 18, 16), 0.5 * raster.blur(to_float(seam), 1.2))


def _draw_teeth(paper: Paper, opening: tuple[Floats, Floats], landmarks: Floats, glow: Floats, gap: float) -> None:
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
    middle, half = 0.5 * (landmarks[60, 0] + landmarks[64, 0]), 0.5 * (landmarks[64, 0] - landmarks[60, 0])
    round_off = 1.0 - 0.62 * np.clip(np.abs(x - middle) / half, 0, 1) ** 2
    ivory = linear(238, 231, 218)[:, None, None] * glow[:, None, None] * round_off * (1.0 - 0.42 * to_float(gaps))
    over(paper.planes, ivory.astype(np.float32), teeth * np.float32(0.97))


_EAR = np.array([(-10, 244), (2, 234), (12, 231), (19, 239), (20, 258), (16, 281), (11, 300), (4, 316), (-6, 320), (-14, 310)])
_CONCHA = np.array([(-3, 256), (6, 247), (12, 255), (10, 274), (3, 290), (-4, 294)])


def _ear_outline(head: Head, outline: NDArray[np.float64], sign: float) -> Floats:
    traits = head.traits
    grow = 1.0 + 0.10 * traits.shape["ear_size"] + 0.08 * float(smoothstep(40, 80, traits.age))
    points = curve(np.concatenate([outline, outline[:1]]), 40)
    x = MIDDLE + sign * (140.0 + 4.9 * traits.shape["face_width"] + grow * points[:, 0])
    y = 278.0 + grow * (points[:, 1] - 278.0)
    return head.place(np.stack([x, y, -104.0 + 0.4 * points[:, 0]], axis=1).astype(np.float32))


def draw_ears(canvas: Paper, head: Head, light: Light) -> None:
    """Draw both ears behind the head."""
    traits = head.traits
    skin = textures.skin_color(traits.melanin, traits.undertone) * np.array([1.0, 0.85, 0.85], np.float32)
    for sign in (-1.0, 1.0):
        rim, concha = _ear_outline(head, _EAR, sign), _ear_outline(head, _CONCHA, sign)
        paper = canvas.window(rim, 4.0)
        raster = paper.raster
        facing = max(0.0, float(light.direction @ np.array([0.55 * sign, 0.0, 0.8])) * 0.8 + 0.2)
        tone = (skin * (light.dome * 0.9 + light.key * facing)).astype(np.float32)
        ear, edge = raster.fill(rim), raster.blank()
        raster.strokes(edge, [rim[4:26]], 4.0, 255)
        over(paper.planes, tone, ear)
        over(paper.planes, tone * np.float32(1.2), 0.6 * raster.blur(to_float(edge), 2.0) * ear)
        hollow = raster.blur(raster.fill(concha), 2.6) * ear
        over(paper.planes, tone * np.array([0.44, 0.32, 0.30], np.float32), 0.75 * hollow)


def mean_jaw() -> Floats:
    """Return the mean jaw line as a smooth curve from the left ear over the chin to the right, [48, 2]."""
    return curve(mean_landmarks()[:17], 48)
