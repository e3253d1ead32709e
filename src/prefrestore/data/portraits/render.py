"""One portrait from (seed, index): traits, picture, caption and landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrestore.data.portraits import accessories, features, hair, scene, skin, textures
from prefrestore.data.portraits.anatomy import FRAME
from prefrestore.data.portraits.captions import caption
from prefrestore.data.portraits.features import Paper
from prefrestore.data.portraits.geometry import Head, build_head, surface_of
from prefrestore.data.portraits.raster import Floats, Raster, over
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


def render_size(image_size: int) -> int:
    """Return the resolution that a picture is drawn at before it is averaged down."""
    return max(80, image_size * 7 // 4 if image_size < 100 else image_size * 5 // 4)


def _head_outline(head: Head) -> tuple[Floats, ...]:
    """Return nested outlines of the head whose union is its silhouette, each [N, 2] in the frame."""
    ring = features.mean_outline()
    return tuple(head.project_nested(ring, (1.0, 0.96, 0.9)))


def _draw_face(canvas: Paper, head: Head, landmarks: Floats, random: np.random.Generator) -> Floats:
    """Draw the lit head with its features onto the canvas and return the head's mask, [S, S]."""
    light, outline = skin.light_of(head.traits), _head_outline(head)
    paper = canvas.window(outline[0], 3.0 if head.traits.facial_hair == "none" else 18.0)
    face = paper.raster
    surface = surface_of(head, face)
    fields = skin.skin_fields(surface, head.traits)
    grain = textures.texture("pores", face, random)
    lit = skin.light_head(skin.detailed_depth(surface, fields, head.traits, grain), fields.oil, light, face)
    albedo = Paper(skin.skin_albedo(head, fields, face, grain, random), face)
    outlines = features.lip_outlines(landmarks)
    features.paint_nose(albedo, head, landmarks)
    lips = features.paint_lips(albedo, head, outlines, random)
    features.paint_brows(albedo, head, landmarks, random)
    mask = face.fill(*outline)
    over(paper.planes, albedo.planes * lit.diffuse + lit.shine * (1.0 + 0.6 * lips), mask)
    features.draw_mouth(paper, head, outlines, lit)
    features.draw_eyes(paper, head, landmarks, (lit, light), random)
    ground = accessories.Ground(lit, mask * (1.0 - lips), 1.0 - lips)
    accessories.draw_facial_hair(paper.planes, head, fields, ground, face, random)
    return canvas.raster.fill(*outline)


def render_traits(traits: Traits, image_size: int, seed: int, index: int) -> Portrait:
    """Return the portrait of `traits`; (seed, index) choose the details that the traits leave open."""
    raster, body = Raster(render_size(image_size)), rng(seed, "portrait-body", index)
    head = build_head(traits, body)
    landmarks = head.landmarks()
    light = skin.light_of(traits)
    canvas = scene.background(traits, raster, body)
    wig = hair.wig_of(head, raster, light, rng(seed, "portrait-hair", index))
    paper = Paper(canvas, raster)
    hair.draw_back_hair(canvas, wig)
    scene.draw_neck(paper, head, light, landmarks[:17])
    scene.draw_clothes(paper, head, light, body)
    if not wig.style.curtain:
        features.draw_ears(paper, head, light)
    mask = _draw_face(paper, head, landmarks, body)
    accessories.draw_glasses(paper, head, light)
    hair.draw_hair(canvas, wig, mask)
    image = scene.finish(canvas, image_size)
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
