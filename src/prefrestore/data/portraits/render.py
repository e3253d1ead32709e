"""One portrait from (seed, index): traits, picture, caption and landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits import accessories, features, hair, scene, skin, textures
from prefrestore.data.portraits.anatomy import FRAME, MIDDLE
from prefrestore.data.portraits.captions import caption
from prefrestore.data.portraits.features import Paper
from prefrestore.data.portraits.geometry import Floats, Head, build_head, surface_of
from prefrestore.data.portraits.raster import Raster, over
from prefrestore.data.portraits.traits import Traits, draw_traits
from prefrestore.runtime.seeding import rng

MAX_SIZE = 1024


@dataclass(frozen=True)
class Portrait:
    """A drawn person: `image` uint8 RGB [H, W, 3], `landmarks` float32 [68, 2] (x, y in pixels, iBUG order)."""

    image: NDArray[np.uint8]
    caption: str
    landmarks: Floats
    traits: Traits


@dataclass(frozen=True)
class Shot:
    """The streams of randomness of one portrait, by name, so that no part of the drawing depends on another's draws."""

    seed: int
    index: int

    def random(self, name: str) -> np.random.Generator:
        """Return the generator of the part `name`."""
        return rng(self.seed, "portrait", name, self.index)


def render_size(image_size: int) -> int:
    """Return the resolution that a picture is drawn at before it is averaged down."""
    return max(96, image_size + image_size // 2) if image_size > 64 else max(96, 2 * image_size)


def _head_outline(head: Head) -> tuple[Floats, ...]:
    """Return nested outlines of the head whose union is its silhouette, each [N, 2] in the frame."""
    skull = np.array([(400, 238), (397, 200), (391, 160), (376, 110), (345, 70), (300, 46), (256, 40)], np.float32)
    skull = np.concatenate([skull, (skull * np.array([-1, 1], np.float32) + np.array([FRAME, 0], np.float32))[-2::-1]])
    jaw = features.mean_jaw()
    ring = np.concatenate([jaw, features.curve(skull, 40)])
    return tuple(head.project(MIDDLE + (ring - MIDDLE) * np.array([factor, 1.0], np.float32)) for factor in (1.0, 0.96, 0.9))


def _draw_face(canvas: Floats, head: Head, shot: Shot, raster: Raster, landmarks: Floats) -> Floats:
    """Draw the lit head with its features onto the canvas and return the head's mask, [S, S]."""
    light, outline = skin.light_of(head.traits), _head_outline(head)
    face = raster.window(outline[0], 18.0)
    paper = Paper(face.of(canvas), face)
    surface = surface_of(head, face)
    fields = skin.skin_fields(surface, head.traits)
    grain = textures.texture("pores", face, shot.random("pores"))
    lit = skin.light_head(skin.detailed_depth(surface, fields, head.traits, grain), fields.oil, light, face)
    details = shot.random("details")
    albedo = Paper(skin.skin_albedo(head, fields, face, grain, shot.random("skin")), face)
    features.paint_nose(albedo, head, landmarks)
    lips = features.paint_lips(albedo, head, landmarks, details)
    features.paint_brows(albedo, head, landmarks, details)
    mask = face.fill(*outline)
    over(paper.planes, albedo.planes * lit.diffuse + lit.shine * (1.0 + 0.6 * lips), mask)
    features.draw_mouth(paper, head, landmarks, lit)
    features.draw_eyes(paper, head, landmarks, (lit, light), details)
    ground = accessories.Ground(lit, mask * (1.0 - lips), 1.0 - lips)
    accessories.draw_facial_hair(paper.planes, head, fields, ground, face, shot.random("beard"))
    return raster.fill(*outline)


def render_traits(traits: Traits, image_size: int, seed: int, index: int) -> Portrait:
    """Return the portrait of `traits`; (seed, index) choose the details that the traits leave open."""
    shot, raster = Shot(seed, index), Raster(render_size(image_size))
    head = build_head(traits, shot.random("head"))
    landmarks = head.landmarks()
    light = skin.light_of(traits)
    wig = hair.wig_of(head, raster, light, shot.random("hair"))
    surroundings = shot.random("scene")
    canvas = scene.background(traits, raster, surroundings)
    paper = Paper(canvas, raster)
    hair.draw_back_hair(canvas, wig)
    scene.draw_neck(paper, head, light, landmarks[:17])
    scene.draw_clothes(paper, head, light, surroundings)
    features.draw_ears(paper, head, light)
    mask = _draw_face(canvas, head, shot, raster, landmarks)
    accessories.draw_glasses(paper, head, light)
    hair.draw_hair(canvas, wig, mask)
    image = scene.finish(canvas, raster, image_size)
    pixels = landmarks * np.float32(image_size / FRAME) - np.float32(0.5)
    return Portrait(image, caption(traits), pixels.astype(np.float32), traits)


def render(index: int, image_size: int, seed: int) -> Portrait:
    """Return portrait `index` of the endless set `seed`, at `image_size` pixels (32 to 1024).

    The same bytes whenever and in whatever order it is called; the same person and shot at every size.
    Raises ValueError for a size out of range.
    """
    if not 32 <= image_size <= MAX_SIZE:
        raise ValueError(f"image_size must be 32 to {MAX_SIZE}, not {image_size}")
    return render_traits(draw_traits(index, seed), image_size, seed, index)
