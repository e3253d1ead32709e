"""What surrounds the head: background, neck and clothes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits import textures
from prefrestore.data.portraits.anatomy import FRAME, MIDDLE
from prefrestore.data.portraits.features import Paper, curve
from prefrestore.data.portraits.geometry import Floats, Head, smoothstep
from prefrestore.data.portraits.raster import Raster, linear, over, to_float
from prefrestore.data.portraits.skin import Light
from prefrestore.data.portraits.traits import Traits

_CELLS = 24
_BREAST = np.array([[0.0, 436.0], [FRAME, FRAME]], np.float32)
_LINE = np.linspace(0.0, 1.0, _CELLS, dtype=np.float32)
_GROUNDS = ((0.13, 0.19, 0.07), (0.09, 0.13, 0.06), (0.22, 0.20, 0.17), (0.30, 0.20, 0.11), (0.16, 0.18, 0.22))


def _outdoors(random: np.random.Generator) -> Floats:
    """Return a blurred view, [3, C, C]: sky above; foliage, stone or evening light below, with spots of light."""
    ground = np.array(_GROUNDS[random.integers(0, len(_GROUNDS))], np.float32)[:, None, None]
    grain = cv2.GaussianBlur(random.random((_CELLS, _CELLS), np.float32), (0, 0), 1.1) * 1.6 + 0.2
    tone = cv2.GaussianBlur(random.random((_CELLS, _CELLS, 3), np.float32), (0, 0), 1.5).transpose(2, 0, 1) - 0.5
    scene = ground * np.maximum(grain + 0.8 * tone, 0.1)
    sky = linear(205, 220, 236)[:, None, None] * np.float32(random.uniform(0.5, 1.1))
    rows = np.arange(_CELLS)[None, :, None]
    horizon = random.uniform(-6.0, 14.0) + 2.0 * np.sin(np.arange(_CELLS) * 0.4 + random.uniform(0, 6))[None, None]
    scene = scene + (sky - scene) * smoothstep(2.5, -2.5, rows - horizon)
    at = random.integers(0, _CELLS, (2, 14))
    scene[:, at[0], at[1]] += ground[..., 0] * random.uniform(0.5, 2.0)
    return np.asarray(scene, np.float32)


def _office(tint: Floats, random: np.random.Generator) -> Floats:
    """Return a blurred room, [3, C, C]: upright bands, a shelf, a window."""
    bands = np.repeat(random.uniform(0.4, 1.3, 8), 3)[None, None, :]
    room = (0.35 * tint + 0.18)[:, None, None] * bands * np.ones((1, _CELLS, 1))
    left, top = random.integers(0, 17), random.integers(0, 9)
    room[:, top : top + 9, left : left + 6] = linear(232, 236, 240)[:, None, None] * random.uniform(0.5, 1.0)
    shelf = random.integers(10, 22)
    room[:, shelf : shelf + 1] *= 0.4
    return np.asarray(room, np.float32)


def background(traits: Traits, raster: Raster, random: np.random.Generator) -> Floats:
    """Return the background, linear [3, S, S]."""
    tint = textures.TINTS[traits.background_color] * np.float32(random.uniform(0.8, 1.5))
    if traits.background in ("outdoors", "office"):
        sharp = _outdoors(random) if traits.background == "outdoors" else _office(tint, random)
        cells = np.stack([cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in sharp])
    else:
        x, y = _LINE[None, :], _LINE[:, None]
        depth = 1.0 if traits.background == "gradient" else 0.25
        cx, cy = random.uniform(0.2, 0.8), random.uniform(0.1, 0.7)
        glow = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.25)
        cells = (tint[:, None, None] * (1.0 + depth * (0.9 * glow - 0.55)) + 0.012).astype(np.float32)
    picture = np.empty((3, raster.size, raster.size), np.float32)
    for plane, target in zip(cells, picture, strict=True):
        cv2.resize(plane, (raster.size, raster.size), dst=target, interpolation=cv2.INTER_CUBIC)
    return np.maximum(picture, np.float32(0.004), out=picture)


def torso_center(head: Head) -> float:
    """Return x of the torso's middle in the frame: under the chin, but less moved than the head."""
    chin = head.place(np.array([[MIDDLE, 440.0, -60.0]], np.float32))[0]
    return float(0.6 * chin[0] + 0.4 * MIDDLE)


def neck_half_width(traits: Traits) -> float:
    """Return half the neck's width, frame pixels."""
    return 88.0 + 6.5 * float(np.clip(traits.shape["neck_width"], -2, 2)) + 4.0 * traits.shape["face_width"]


def draw_neck(canvas: Paper, head: Head, light: Light, chin: Floats) -> None:
    """Draw neck and upper chest; `chin` is the outline of the jaw [17, 2], which throws a shadow."""
    traits, center, half = head.traits, torso_center(head), neck_half_width(head.traits)
    top = head.place(np.array([[MIDDLE - half, 370.0, -95.0], [MIDDLE + half, 370.0, -95.0]], np.float32))
    right = curve(np.array([top[1], [center + half, 450], [center + half + 16, 482], [center + 175, 512]], np.float32))
    left = curve(np.array([top[0], [center - half, 450], [center - half - 16, 482], [center - 175, 512]], np.float32))
    bottom = np.array([[center + 175, 530], [center - 175, 530]], np.float32)
    outline = np.concatenate([right, bottom, left[::-1]])
    paper = canvas.window(outline, 2.0)
    raster = paper.raster
    x, _ = raster.axes()
    across = np.clip((x - center) / (1.08 * half), -0.97, 0.97)
    facing = (
        light.direction[0] * across + light.direction[2] * np.sqrt(1.0 - across * across) - 0.15 * light.direction[1]
    )
    shape = np.concatenate([chin, [[chin[16, 0], 200.0], [chin[0, 0], 200.0]]]).astype(np.float32)
    drop = np.array([-light.direction[0] * 26.0, 20.0 - 42.0 * light.direction[1]], np.float32)
    shadow = raster.blur(raster.fill(shape + drop), 10.0 + 8.0 * light.softness)
    key = np.maximum((facing + 0.15) / 1.15, 0.0) * (1.0 - 0.88 * shadow) * np.float32(0.92)
    glow = light.dome[:, None, None] * (1.0 - 0.5 * shadow) + light.key[:, None, None] * key
    skin = textures.skin_color(traits.melanin, traits.undertone) * np.array([0.96, 0.88, 0.86], np.float32)
    over(paper.planes, (skin[:, None, None] * glow).astype(np.float32), raster.fill(outline))


def _weave(raster: Raster, random: np.random.Generator) -> Floats:
    """Return a fabric's weave or knit around 1, [S, S]; it fades where its period is under two pixels."""
    x, y = raster.axes()
    period = random.choice([4.0, 5.0, 7.0])
    kind = random.integers(0, 3)
    strength = np.float32(0.16 * smoothstep(1.6, 3.0, period * raster.scale))
    wave = np.float32(2 * np.pi / period)
    if kind == 0:
        return 1.0 + strength * np.sin(wave * (x + y)) * np.sin(wave * (x - y))
    if kind == 1:
        return 1.0 + strength * np.sin(wave * (x + 2.2 * np.abs(np.sin(y * wave * 0.5))))
    return 1.0 + 0.6 * strength * (np.sin(wave * x) + np.sin(wave * y))


def _shoulders(center: float, half: float) -> Floats:
    right = curve(np.array([(half + 2, 458), (half + 34, 473), (200, 490), (268, 520), (300, 560)], np.float32))
    left = right[::-1] * np.array([-1.0, 1.0], np.float32)
    return np.concatenate([left, right]) + np.array([center, 0.0], np.float32)


def _opening(style: str, center: float, half: float) -> Floats:
    """Return the outline of the skin that the garment leaves bare."""
    if style == "turtleneck":
        lower = np.array([(-half - 8, 448), (0, 462), (half + 8, 448)], np.float32)
    elif style == "crew neck" or style == "hoodie":
        lower = np.array(
            [(-half - 10, 455), (-half * 0.7, 484), (0, 497), (half * 0.7, 484), (half + 10, 455)], np.float32
        )
    else:
        lower = np.array(
            [(-half - 6, 452), (-half * 0.45, 494), (0, 540), (half * 0.45, 494), (half + 6, 452)], np.float32
        )
    bend = lower if style in ("v-neck", "shirt", "jacket") else curve(lower)
    up = np.array([(half + 10, 300), (-half - 10, 300)], np.float32)
    return np.concatenate([bend, up]) + np.array([center, 0.0], np.float32)


def _collar(half: float, sign: float) -> Floats:
    points = np.array(
        [(half * 0.98, 440), (half + 14, 462), (half * 0.62, 516), (half * 0.16, 520), (half * 0.55, 488)]
    )
    return (points * np.array([sign, 1.0])).astype(np.float32)


def _lapel(half: float, sign: float) -> Floats:
    points = np.array(
        [(half + 4, 452), (half + 40, 468), (half + 30, 515), (half + 8, 540), (half * 0.35, 540), (half * 0.8, 500)]
    )
    return (points * np.array([sign, 1.0])).astype(np.float32)


def _cloth_light(light: Light, raster: Raster, center: float, random: np.random.Generator) -> Floats:
    """Return the light on the clothes, [3, S, S], with soft folds."""
    x, y = raster.axes()
    across = np.clip((x - center) / 300.0, -0.9, 0.9)
    up = np.clip((540.0 - y) / 110.0, 0.0, 0.8)
    facing = light.direction[0] * across - light.direction[1] * up + light.direction[2] * np.sqrt(1.2 - across**2)
    folds = 1.0 + 0.10 * textures.texture("folds", raster, random)
    return light.dome[:, None, None] * 0.8 + light.key[:, None, None] * (np.maximum(facing, 0.0) * 0.75 * folds)


def draw_clothes(paper: Paper, head: Head, light: Light, random: np.random.Generator) -> None:
    """Draw the garment that the traits name."""
    traits, center, half = head.traits, torso_center(head), neck_half_width(head.traits)
    color = textures.TINTS[traits.clothing_color] * np.float32(random.uniform(0.5, 1.1))
    paper = paper.window(_BREAST, 0.0)
    canvas, raster = paper.planes, paper.raster
    shoulders = raster.fill(_shoulders(center, half))
    opening = _opening(traits.clothing, center, half)
    bare = raster.fill(opening)
    glow = _cloth_light(light, raster, center, random) * _weave(raster, random)
    middle = np.array([center, 0.0], np.float32)
    cloth = (color[:, None, None] * glow).astype(np.float32)
    if traits.clothing in ("shirt", "jacket"):
        _draw_shirt(paper, traits, center, cloth, glow)
        return
    garment = np.clip(shoulders - bare, 0.0, 1.0)
    if traits.clothing == "turtleneck":
        tube = (
            np.array([(-half - 9, 440), (0, 458), (half + 9, 440), (half + 14, 500), (-half - 14, 500)], np.float32)
            + middle
        )
        garment = np.maximum(garment, raster.fill(tube))
    edge = raster.blank()
    raster.strokes(
        edge, [opening[:-2] + np.array([0.0, 5.0], np.float32)], 10.0 if traits.clothing == "hoodie" else 6.0, 255
    )
    canvas *= 1.0 - 0.35 * raster.blur(garment, 5.0) * bare
    over(canvas, cloth * (1.0 - 0.30 * to_float(raster.smear(edge, 2.0))), garment)


def _draw_shirt(paper: Paper, traits: Traits, center: float, cloth: Floats, glow: Floats) -> None:
    """Draw a collared shirt, with lapels over it where the traits say jacket."""
    canvas, raster = paper.planes, paper.raster
    half, middle = neck_half_width(traits), np.array([center, 0.0], np.float32)
    shirt = (linear(226, 230, 236)[:, None, None] * glow).astype(np.float32) if traits.clothing == "jacket" else cloth
    opening = raster.fill(np.array([(-half * 0.55, 470), (0, 530), (half * 0.55, 470), (0, 440)], np.float32) + middle)
    below = np.array(
        [(-half - 4, 456), (-half * 0.5, 490), (0, 522), (half * 0.5, 490), (half + 4, 456), (290, 560), (-290, 560)]
    )
    body = raster.fill((below + middle).astype(np.float32)) * raster.fill(_shoulders(center, half))
    over(canvas, shirt, body)
    collars = raster.fill(*[_collar(half, sign) + middle for sign in (-1.0, 1.0)])
    over(canvas, np.zeros(3, np.float32), 0.30 * raster.blur(collars, 4.0) * np.maximum(body, opening))
    over(canvas, np.minimum(shirt * 1.08, 1.0), collars)
    if traits.clothing == "shirt":
        return
    outline = _shoulders(float(middle[0]), half)
    inside = (
        np.array([(-half * 0.9, 440), (-half * 0.35, 540), (half * 0.35, 540), (half * 0.9, 440)], np.float32) + middle
    )
    coat = np.clip(raster.fill(outline) - raster.fill(inside), 0.0, 1.0)
    over(canvas, cloth * 0.6, coat)
    lapels = raster.fill(*[_lapel(half, sign) + middle for sign in (-1.0, 1.0)])
    over(canvas, np.zeros(3, np.float32), 0.4 * raster.blur(lapels, 4.0) * np.maximum(coat, body))
    over(canvas, cloth * 0.68, lapels)


def finish(canvas: Floats, size: int) -> NDArray[np.uint8]:
    """Return the developed picture, uint8 RGB [size, size, 3]: area average, vignette, highlight roll-off, gamma."""
    small = cv2.merge([cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in canvas])
    x, y = (axis / FRAME - 0.5 for axis in Raster(size).axes())
    small *= (1.05 - 0.44 * (x * x + y * y))[..., None]
    bent = small * np.float32(0.36)
    bent += 1.0
    small *= np.float32(0.16) * small + 1.0
    display = cv2.sqrt(small / bent)
    display *= 255.0
    return cv2.convertScaleAbs(display)
