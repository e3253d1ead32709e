"""Light on the head: normals from depth, wrapped diffuse light, occlusion, cast shadows, shine; and its colour."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from prefrestore.data.portraits import anatomy, textures
from prefrestore.data.portraits.anatomy import FRAME
from prefrestore.data.portraits.geometry import Floats, Head, Surface, smoothstep
from prefrestore.data.portraits.raster import Raster, over, to_float
from prefrestore.data.portraits.traits import Traits

_MARCH = (6.0, 13.0, 23.0, 38.0, 56.0)
_SHADOW_PIXEL = 5.5


@dataclass(frozen=True)
class Light:
    """A key light (unit vector towards it; x right, y down, z to the viewer) and a dome, linear colours [3]."""

    direction: Floats
    key: Floats
    dome: Floats
    softness: float


@dataclass(frozen=True)
class Lit:
    """Light that reaches the head per pixel: `diffuse` [3, S, S] to multiply an albedo with, `shine` [S, S] to add."""

    diffuse: Floats
    shine: Floats


def light_of(traits: Traits) -> Light:
    """Return the light that the traits name."""
    azimuth, elevation = np.deg2rad([traits.light_azimuth, traits.light_elevation])
    direction = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    warm = np.array([1.0 + 0.035 * traits.warmth, 1.0, 1.0 - 0.06 * traits.warmth])
    cool = np.array([1.0 - 0.02 * traits.warmth, 1.0, 1.0 + 0.04 * traits.warmth])
    dome = 0.26 + 0.22 * traits.light_softness
    return Light(direction.astype(np.float32), (warm * (1.12 - dome) * 1.12).astype(np.float32),
                 (cool * dome).astype(np.float32), traits.light_softness)  # fmt: skip


def _cast_shadow(depth: Floats, light: Light, scale: float) -> Floats:
    """Return how much of the key light the relief itself blocks, [h, w] in 0..1, by marching towards the light."""
    height, width = depth.shape
    size = (round(width / (scale * _SHADOW_PIXEL)), round(height / (scale * _SHADOW_PIXEL)))
    coarse = cv2.resize(depth, size, interpolation=cv2.INTER_AREA)
    blocked = np.zeros_like(coarse)
    across, toward = light.direction[:2] / _SHADOW_PIXEL, light.direction[2]
    for step in _MARCH:
        shift = np.array([[1, 0, step * across[0]], [0, 1, step * across[1]]], np.float32)
        there = cv2.warpAffine(coarse, shift, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        there -= coarse
        there -= step * toward
        there *= np.float32(1.0 / (2.5 + 0.35 * step * (0.4 + light.softness)))
        np.maximum(blocked, there, out=blocked)
    soft = cv2.GaussianBlur(np.minimum(blocked, 1.0), (0, 0), 0.9 + 1.6 * light.softness)
    return cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)


def _occlusion(depth: Floats, raster: Raster) -> Floats:
    """Return ambient light left in hollows, [S, S]: 1 in the open, less where the surroundings stand higher."""
    near = raster.blur(depth, 8.0) - depth
    far = raster.blur(depth, 20.0) - depth
    hollow = np.maximum(near, 0.0) * np.float32(0.050) + np.maximum(far, 0.0) * np.float32(0.020)
    return 1.0 / (1.0 + hollow)


def light_head(depth: Floats, oil: Floats, light: Light, raster: Raster) -> Lit:
    """Return the light on a surface given by its depth [S, S] in frame pixels; `oil` in 0..1 scales the shine."""
    slope = np.float32(raster.scale / 8.0)
    gx, gy = (
        cv2.Sobel(depth, cv2.CV_32F, dx, 1 - dx, ksize=3, borderType=cv2.BORDER_REPLICATE) * slope for dx in (1, 0)
    )
    inverse = 1.0 / cv2.sqrt(1.0 + gx * gx + gy * gy)
    lx, ly, lz = light.direction
    facing = (lz - lx * gx - ly * gy) * inverse
    lost = _cast_shadow(depth, light, raster.scale)
    open_sky = _occlusion(depth, raster)
    sky = open_sky * (0.88 + 0.20 * gy * inverse)
    key = (1.0 - 0.72 * lost) * (0.4 + 0.6 * open_sky)
    red, other = (np.maximum((facing + np.float32(wrap)) * np.float32(1.0 / (1.0 + wrap)), 0.0) * key
                  for wrap in (0.30, 0.15))  # fmt: skip
    planes = [light.dome[channel] * sky + light.key[channel] * wrapped
              for channel, wrapped in enumerate((red, other, other))]  # fmt: skip
    half = light.direction + np.array([0.0, 0.0, 1.0], np.float32)
    half /= np.linalg.norm(half)
    mirror = np.maximum((half[2] - half[0] * gx - half[1] * gy) * inverse, 0.0)
    shine = (0.055 * cv2.pow(mirror, 14.0) + 0.20 * cv2.pow(mirror, 60.0)) * oil * key
    return Lit(np.stack(planes), shine)


@dataclass(frozen=True)
class SkinFields:
    """Maps of the mean face in the picture, each [h, w]; `beard` and `goatee` mean nothing without facial hair."""

    redness: Floats
    dark: Floats
    oil: Floats
    beard: Floats
    wrinkles: Floats
    goatee: Floats


def skin_fields(surface: Surface, traits: Traits) -> SkinFields:
    """Return the skin maps at every pixel of `surface`; wrinkles are weighted by age and expression."""
    skin_maps, beard_maps, wrinkle_maps = anatomy.skin_maps()
    redness, dark, oil = surface.spread(skin_maps)
    beard, goatee, _ = surface.spread(beard_maps) if traits.facial_hair != "none" else (oil, oil, oil)
    scale = np.float32(wrinkle_maps.shape[0] / FRAME)
    fine = cv2.remap(wrinkle_maps, surface.x * scale - 0.5, surface.y * scale - 0.5, cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    age = float(smoothstep(34.0, 76.0, traits.age))
    smile = {"broad smile": 1.0, "slight smile": 0.5}.get(traits.expression, 0.0)
    weights = np.array([0.02 + 1.0 * age, 0.06 + 0.9 * age + 0.25 * smile, 0.04 + 0.7 * age + 0.4 * smile], np.float32)
    return SkinFields(redness, dark, oil, beard, cv2.transform(fine, weights[None]), goatee)


def detailed_depth(surface: Surface, fields: SkinFields, traits: Traits, grain: Floats) -> Floats:
    """Return the surface's depth with wrinkles and pores, frame pixels."""
    rough = 0.075 + 0.07 * float(smoothstep(30.0, 75.0, traits.age))
    return surface.raster.blur(surface.depth, 2.4) - 1.5 * fields.wrinkles + np.float32(rough) * grain


def _spots(traits: Traits, head: Head, raster: Raster, random: np.random.Generator) -> Floats:
    """Return freckles, moles and age spots as darkening in 0..1, [S, S]."""
    mask = raster.blank()
    count = 150 if traits.freckles else int(12 * smoothstep(50.0, 78.0, traits.age))
    spread = np.array([52.0, 26.0]) if traits.freckles else np.array([70.0, 85.0])
    center = np.array([256.0, 292.0]) if traits.freckles else np.array([256.0, 230.0])
    points = head.project((center + random.normal(0.0, 1.0, (count + 3, 2)) * spread).astype(np.float32))
    radii = random.uniform(0.8, 1.9, count + 3) * (1.0 if traits.freckles else 1.7)
    radii[-3:] = random.uniform(0.8, 2.2, 3)
    for point, radius in zip(raster.fixed(points), radii, strict=True):
        pixels = radius * raster.scale
        strength = 255.0 * min(1.0, (pixels / 0.55) ** 2) * random.uniform(0.4, 1.0)
        cv2.circle(
            mask, (int(point[0]), int(point[1])), max(1, int(max(pixels, 0.55) * 16)), strength, -1, cv2.LINE_AA, 4
        )
    return to_float(mask)


def skin_albedo(head: Head, fields: SkinFields, raster: Raster, grain: Floats, random: np.random.Generator) -> Floats:
    """Return the colour of the bare skin, linear [3, S, S]."""
    traits = head.traits
    base = textures.skin_color(traits.melanin, traits.undertone)
    mottling = textures.texture("mottling", raster, random)
    shade = 1.0 + np.float32(0.030) * mottling + np.float32(0.035) * grain - np.float32(0.16) * fields.wrinkles
    albedo = base[:, None, None] * shade
    flush = (0.45 + 0.25 * random.random()) * (1.0 - 0.55 * traits.melanin)
    rosy = fields.redness * np.float32(flush) + np.float32(0.05) * mottling
    albedo *= 1.0 - rosy * np.array([0.06, 0.34, 0.30], np.float32)[:, None, None]
    tired = 0.22 + 0.30 * float(smoothstep(30, 75, traits.age))
    albedo *= 1.0 - fields.dark * np.array([0.75, 0.95, 0.80], np.float32)[:, None, None] * np.float32(tired)
    over(
        albedo, base * np.array([0.45, 0.33, 0.26], np.float32), np.float32(0.55) * _spots(traits, head, raster, random)
    )
    return albedo
