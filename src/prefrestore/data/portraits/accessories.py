"""Facial hair and glasses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import MIDDLE, mean_landmarks, skin_maps
from prefrestore.data.portraits.features import Paper, curve
from prefrestore.data.portraits.geometry import Floats, Head
from prefrestore.data.portraits.raster import Raster, over, to_float
from prefrestore.data.portraits.skin import Light, Lit, SkinFields
from prefrestore.runtime.seeding import rng

_MOUSTACHE = np.array(
    [(0, 345), (24, 343), (46, 356), (60, 377), (56, 384), (40, 370), (18, 360), (0, 361)], np.float32
)
_STYLES = {  # length of hairs, hairs, cover of the ground, parts
    "stubble": (3.0, 1100, 0.22, ("beard", "moustache")),
    "moustache": (11.0, 420, 0.86, ("moustache",)),
    "goatee": (10.0, 650, 0.76, ("goatee", "moustache")),
    "short beard": (8.0, 1300, 0.72, ("beard", "moustache")),
    "full beard": (17.0, 1500, 0.88, ("beard", "moustache")),
}


@lru_cache(maxsize=1)
def _candidates() -> dict[str, Floats]:
    """Return points of the mean face where each part's hairs may root, [N, 2]."""
    random = rng("portrait-beard-roots")
    points = random.uniform((100, 240), (412, 475), (24000, 2)).astype(np.float32)
    outline = curve(mean_landmarks()[:17], 48)
    inside = np.array([cv2.pointPolygonTest(outline, (float(x), float(y)), True) > 3.0 for x, y in points])
    points = points[inside]
    _, maps, _ = skin_maps()
    texel = maps.shape[0] / 512.0
    here = maps[(points[:, 1] * texel).astype(int), (points[:, 0] * texel).astype(int)]
    beard = points[random.random(len(points)) < here[:, 0] ** 2]
    goatee = points[random.random(len(points)) < (here[:, 0] * here[:, 1])]
    along = random.random(1500)
    half = np.stack(
        [np.interp(along, [0, 0.4, 1], [2, 30, 58]), np.interp(along, [0, 0.4, 1], [347, 350, 374])], axis=1
    )
    half += random.normal(0, 1, half.shape) * np.array([2.0, 4.0])
    half[:, 0] = MIDDLE + half[:, 0] * random.choice([-1, 1], len(half))
    return {"beard": beard, "goatee": goatee, "moustache": half.astype(np.float32)}


def _hairs(head: Head, roots: Floats, length: float, random: np.random.Generator) -> Floats:
    """Return hairs growing down and outward from `roots`, projected, [N, 3, 2]."""
    side = (roots[:, 0] - MIDDLE) / 90.0
    lean = 0.55 * side + random.normal(0, 0.28, len(roots))
    lip = np.exp(-(((roots[:, 1] - 358) / 16) ** 2)) * (np.abs(side) < 0.75)
    lean = lean * (1.0 + 2.2 * lip)
    size = length * random.uniform(0.6, 1.25, len(roots)) * (1.0 - 0.25 * lip)
    step = np.stack([np.sin(lean), np.cos(lean)], axis=1) * size[:, None]
    curl = np.stack([random.normal(0, 0.13, len(roots)) * size, np.zeros(len(roots))], axis=1)
    lines = np.stack([roots, roots + 0.5 * step + curl, roots + step], axis=1).astype(np.float32)
    return head.project(lines.reshape(-1, 2), lift=2.0).reshape(lines.shape)


@dataclass(frozen=True)
class Ground:
    """The light on the head, where facial hair roots (`room`) and where it may hang (`keep`), each [h, w] in 0..1."""

    lit: Lit
    room: Floats
    keep: Floats


def _cover(head: Head, fields: SkinFields, raster: Raster, parts: tuple[str, ...]) -> Floats:
    """Return the ground that the parts of a beard cover, [h, w]."""
    cover = np.zeros_like(fields.beard)
    if "beard" in parts:
        cover = np.clip(fields.beard * 1.5 - 0.3, 0.0, 1.0)
    if "goatee" in parts:
        cover = np.clip(fields.goatee * fields.beard * 1.6 - 0.2, 0.0, 1.0)
    half = np.concatenate([_MOUSTACHE, (_MOUSTACHE * np.array([-1, 1], np.float32))[::-1]])
    outline = head.project(half + np.array([MIDDLE, 0.0], np.float32))
    return np.maximum(cover, raster.blur(raster.fill(outline), 3.0))


def draw_facial_hair(canvas: Floats, head: Head, fields: SkinFields, ground: Ground, raster: Raster,
                     random: np.random.Generator) -> None:  # fmt: skip
    """Draw the beard or moustache that the traits name onto the lit head, `canvas` [3, h, w]."""
    traits = head.traits
    if traits.facial_hair == "none":
        return
    length, count, cover, parts = _STYLES[traits.facial_hair]
    field, tips = np.full(raster.shape, 110, np.uint8), raster.blank()
    for part in parts:
        roots = _candidates()[part]
        share = count // 4 if part == "moustache" and len(parts) > 1 else count
        hairs = _hairs(head, roots[random.integers(0, len(roots), share)], length, random)
        for group, value in enumerate((70, 150, 95, 190, 60, 120)):
            cv2.polylines(field, list(raster.fixed(hairs[group::6])), False, value, max(1, round(0.9 * raster.scale)),
                          cv2.LINE_AA, 4)  # fmt: skip
        raster.strokes(tips, hairs, 0.9, 255, 0.7)
    sparse = traits.facial_hair == "stubble"
    alpha = np.maximum(
        _cover(head, fields, raster, parts) * np.float32(cover) * ground.room,
        to_float(tips) * np.where(ground.room > 0.5, 0.7, 0.6 - 0.6 * sparse) * ground.keep,
    )
    shade = field * np.float32(1 / 255.0) - np.float32(110 / 255.0)
    base, grey = textures.HAIR[traits.hair_color].reshape(3, 1, 1), textures.GREY_STRAND.reshape(3, 1, 1)
    color = base + (grey - base) * np.clip(traits.grey * (0.5 + 1.7 * shade), 0.0, 1.0)
    light = 0.12 + 0.85 * np.clip(ground.lit.diffuse, 0.0, 1.2)
    over(canvas, (color * (0.85 + 1.2 * shade) * light).astype(np.float32), alpha.astype(np.float32))


def _rim(style: str, sign: float) -> Floats:
    """Return the outline of one lens in mean-face coordinates, [64, 2]."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    wide, high, power = {"round": (37, 34, 1.0), "rectangular": (42, 25, 0.45), "thin-rimmed": (40, 27, 0.68),
                         "browline": (41, 29, 0.62)}[style]  # fmt: skip
    x = wide * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
    y = high * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
    x = x * (1.0 - 0.06 * (y > 0) * y / high)
    return np.stack([MIDDLE + sign * (64.0 + x), 243.0 + y], axis=1).astype(np.float32)


def _lens_plane(head: Head, points: Floats, depth: float) -> Floats:
    spread = 1.0 + 0.035 * head.traits.shape["face_width"]
    x = (
        MIDDLE
        + (points[:, 0] - MIDDLE) * spread
        + 0.9 * np.sign(points[:, 0] - MIDDLE) * head.traits.shape["eye_spacing"]
    )
    y = points[:, 1] + 2.5 * head.traits.shape["eye_height"]
    away = depth - 0.0016 * (points[:, 0] - MIDDLE) ** 2
    return head.place(np.stack([x, y, away], axis=1).astype(np.float32))


def draw_glasses(canvas: Paper, head: Head, light: Light) -> None:
    """Draw the glasses that the traits name: shadow, lenses with a reflection, rims, bridge and temples."""
    traits = head.traits
    if traits.glasses == "none":
        return
    width = {"round": 3.4, "rectangular": 4.8, "thin-rimmed": 2.0, "browline": 2.2}[traits.glasses]
    rims = [_lens_plane(head, _rim(traits.glasses, sign), 33.0) for sign in (-1.0, 1.0)]
    ears = head.place(np.array([[MIDDLE + sign * 143.0, 236.0, -92.0] for sign in (-1.0, 1.0)], np.float32))
    paper = canvas.window(np.concatenate([*rims, ears]), 14.0)
    raster, frame = paper.raster, paper.raster.blank()
    for rim, ear, sign in zip(rims, ears, (-1.0, 1.0), strict=True):
        raster.strokes(frame, [np.concatenate([rim, rim[:1]])], width, 255)
        if traits.glasses == "browline":
            raster.strokes(frame, [rim[34:63]], 7.5, 255)
        hinge = rim[np.argmax(rim[:, 0] * sign)] + np.array([0.0, -9.0], np.float32)
        raster.strokes(frame, [np.stack([hinge, ear])], max(2.4, 0.8 * width), 255)
    x = np.array([-25.0, -12.0, 0.0, 12.0, 25.0])
    bridge = np.stack([MIDDLE + x, 236.0 + 6.0 * (x / 25.0) ** 2], axis=1).astype(np.float32)
    raster.strokes(frame, [curve(_lens_plane(head, bridge, 36.0))], width * 0.9, 255)
    cover, glass = to_float(frame), raster.fill(*rims)
    paper.darken(0.35 * _moved(raster.blur(cover, 2.5), -9 * light.direction[0], 4 - 10 * light.direction[1], raster))
    x, y = raster.axes()
    band = np.exp(-(((x * 0.8 + y - 395.0 - 60.0 * light.direction[0]) / 26.0) ** 2))
    over(paper.planes, np.array([0.85, 0.9, 1.0], np.float32), glass * (0.015 + 0.12 * band))
    over(paper.planes, textures.METAL[traits.glasses_color] * (light.dome + 0.8 * light.key), cover * np.float32(0.97))
    over(
        paper.planes,
        np.ones(3, np.float32),
        np.maximum(cover - _moved(cover, 0.0, 1.5, raster), 0.0) * np.float32(0.25),
    )


def _moved(image: Floats, x: float, y: float, raster: Raster) -> Floats:
    """Return `image` moved by (x, y) frame pixels."""
    shift = np.array([[1, 0, x * raster.scale], [0, 1, y * raster.scale]], np.float32)
    return cv2.warpAffine(image, shift, image.shape[::-1])
