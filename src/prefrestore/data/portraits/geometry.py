"""From the mean face to one person in one pose: warp of the control points, rotation, FFHQ framing, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from prefrestore.data.portraits import anatomy
from prefrestore.data.portraits.anatomy import FRAME, GRID, MIDDLE, TEXELS
from prefrestore.data.portraits.raster import Floats, Raster
from prefrestore.data.portraits.traits import EXPRESSIONS, SHAPE_NAMES, Traits

PIVOT = np.array([MIDDLE, 290.0, -70.0], np.float32)
CAMERA_DISTANCE = 2400.0
SMILE = {"neutral": 0.05, "slight smile": 0.6, "broad smile": 1.0, "open mouth": -0.1}
GAP = {"neutral": 1.0, "slight smile": 1.0, "broad smile": 12.0, "open mouth": 24.0}
MEAN_GAP = 5.5
_NODE = FRAME / (GRID - 1)
_CELLS = 56
_SOFT = 96


def smoothstep(low: float, high: float, value: Any) -> Any:
    """Return 0 below `low`, 1 above `high`, and the cubic Hermite ramp between; `low` may exceed `high`."""
    ramp = (value - low) / (high - low)
    ramp = min(max(ramp, 0.0), 1.0) if isinstance(ramp, float) else np.minimum(np.maximum(ramp, 0.0), 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


@dataclass(frozen=True)
class Head:
    """One person's head in its pose. `project` takes points of the mean face to the 512 px frame of the picture."""

    traits: Traits
    offsets: Floats
    control: Floats
    height: Floats
    soft_height: Floats
    rotation: Floats
    similarity: Floats

    def project(self, points: Floats, lift: float = 0.0) -> Floats:
        """Return frame positions [N, 2] of mean-face points [N, 2] on the skin, raised by `lift` frame pixels."""
        flat = np.ascontiguousarray(points.reshape(-1, 2), dtype=np.float32)
        moved = flat + _sample(self.offsets, flat / _NODE)
        depth = _sample(self.soft_height, flat * np.float32(_SOFT / FRAME) - np.float32(0.5))
        return self.place(np.concatenate([moved, depth[:, None] + np.float32(lift)], axis=1))

    def place(self, points: Floats) -> Floats:
        """Return frame positions [N, 2] of points [N, 3] of the head before its rotation."""
        view, shift = self._camera
        seen = cv2.transform(points[None], view)[0]
        return seen[:, :2] * (CAMERA_DISTANCE / (CAMERA_DISTANCE - seen[:, 2:])) + shift

    @cached_property
    def _camera(self) -> tuple[Floats, Floats]:
        """Return the matrix [3, 4] to (x, y) about the pivot in frame pixels and depth, and the pivot's position."""
        turn = np.concatenate([self.similarity[:, :2] @ self.rotation[:2], self.rotation[2:]])
        return np.concatenate([turn, -(turn @ PIVOT)[:, None]], axis=1), self.similarity[:, 2]

    def landmarks(self) -> Floats:
        """Return the 68 landmarks, [68, 2]; those of the jaw lie on the visible outline, as annotators place them."""
        mean = anatomy.mean_landmarks()
        points = self._project_controls(68)
        candidates = np.concatenate([points[None, :17], self.project_nested(mean[:17], (0.96, 0.91, 0.86))])
        side = np.sign(mean[:17, 0] - MIDDLE)
        best = np.argmax((candidates[..., 0] - points[28, 0]) * side, axis=0)
        points[:17] = candidates[best, np.arange(17)]
        return points

    def project_nested(self, ring: Floats, factors: tuple[float, ...]) -> Floats:
        """Return the projections of a mean-face line [N, 2] drawn in towards the midline by `factors`, [F, N, 2]."""
        narrow = np.array(factors, np.float32)[:, None, None] * np.array([1.0, 0.0], np.float32) + np.array(
            [0.0, 1.0], np.float32
        )
        origin = np.array([MIDDLE, 0.0], np.float32)
        return self.project((ring - origin) * narrow + origin).reshape(len(factors), -1, 2)

    def _project_controls(self, count: int) -> Floats:
        mean = anatomy.control_points()[:count]
        depth = _sample(self.soft_height, mean * np.float32(_SOFT / FRAME) - np.float32(0.5))
        return self.place(np.concatenate([self.control[:count], depth[:, None]], axis=1))


def _sample(grid: Floats, points: Floats) -> Floats:
    """Return bilinear samples of `grid` [H, W(, C)] at `points` [N, 2] in node units, [N(, C)]."""
    sampled = cv2.remap(grid, points[None, :, 0], points[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return sampled[0]


def rotation_matrix(yaw: float, pitch: float) -> Floats:
    """Return the rotation of the head, [3, 3]; positive yaw turns it to the picture's right, positive pitch down."""
    (cos_y, sin_y), (cos_p, sin_p) = ((np.cos(a), np.sin(a)) for a in np.deg2rad([yaw, pitch]))
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    about_x = np.array([[1, 0, 0], [0, cos_p, sin_p], [0, -sin_p, cos_p]])
    return (about_x @ about_y).astype(np.float32)


def framing(landmarks: Floats, roll: float, zoom: float) -> Floats:
    """Return the similarity [2, 3] that frames a face as FFHQ does (Karras et al. 2019, alignment script), to 512 px.

    `roll` (degrees) and `zoom` are deviations from that framing.
    """
    eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    eye_middle, mouth_middle = (eyes[0] + eyes[1]) / 2, (landmarks[48] + landmarks[54]) / 2
    eye_to_eye, eye_to_mouth = eyes[1] - eyes[0], mouth_middle - eye_middle
    axis = eye_to_eye - np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    axis *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8) / np.hypot(*axis)
    center = eye_middle + eye_to_mouth * 0.1
    angle = -np.arctan2(axis[1], axis[0]) + np.deg2rad(roll)
    scale = zoom * FRAME / (2.0 * np.hypot(*axis))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([turn, (MIDDLE - turn @ center)[:, None]], axis=1).astype(np.float32)


def _shape_outline(points: Floats, shape: dict[str, float], age: float) -> None:
    x, y = points[:, 0] - MIDDLE, points[:, 1].copy()
    wide = np.minimum(np.abs(x) / 110.0, 1.2)
    jowl = 0.5 * smoothstep(45, 75, age) * np.exp(-(((y - 412) / 30) ** 2))
    x *= 1.0 + 0.035 * shape["face_width"]
    x *= 1.0 + wide * (0.055 * shape["jaw_width"] * smoothstep(295, 385, y) + 0.05 * jowl)
    x *= 1.0 + 0.09 * shape["chin_width"] * smoothstep(405, 458, y)
    x += np.sign(x) * 3.0 * shape["cheekbone"] * np.exp(-(((y - 300) / 32) ** 2)) * (np.abs(x) > 90)
    points[:, 0] = x + MIDDLE
    points[:, 1] += 8.0 * shape["chin_length"] * smoothstep(405, 465, y) - 7.0 * shape["forehead"] * smoothstep(
        160, 90, y
    )


def _shape_eyes(points: Floats, shape: dict[str, float], age: float) -> None:
    for part, sign in ((slice(36, 42), -1.0), (slice(42, 48), 1.0)):
        eye = points[part]
        center = eye.mean(0)
        eye[:] = center + (eye - center) * np.array([1 + 0.06 * shape["eye_size"], 1 + 0.12 * shape["eye_size"]])
        eye[:, 1] -= 1.8 * shape["eye_tilt"] * sign * (eye[:, 0] - center[0]) / 26.0
        eye += np.array([3.0 * sign * shape["eye_spacing"], 2.5 * shape["eye_height"]])
    points[[37, 38, 43, 44], 1] += 1.3 * smoothstep(40, 75, age)
    for part, sign in ((slice(17, 22), -1.0), (slice(22, 27), 1.0)):
        brow = points[part]
        outward = (brow[:, 0] - MIDDLE) * sign
        arch = 2.4 * shape["brow_arch"] * np.exp(-(((outward - 82) / 24) ** 2))
        brow[:, 1] -= 3.0 * shape["brow_height"] + 2.2 * shape["brow_tilt"] * (outward - 70) / 48 + arch
        brow[:, 0] += 2.0 * sign * shape["eye_spacing"]


def _shape_nose_and_mouth(points: Floats, shape: dict[str, float], age: float) -> None:
    nose = points[27:36]
    nose[4:, 0] = MIDDLE + (nose[4:, 0] - MIDDLE) * (1 + 0.11 * shape["nose_width"])
    nose[:, 1] += (5.0 * shape["nose_length"] + 2.0 * smoothstep(40, 75, age)) * smoothstep(245, 320, nose[:, 1])
    mouth = points[48:68]
    mouth[:, 0] = MIDDLE + (mouth[:, 0] - MIDDLE) * (1 + 0.055 * shape["mouth_width"])
    mouth[:, 1] += 3.0 * shape["mouth_height"]
    thin = 1.6 * smoothstep(45, 78, age)
    points[49:54, 1] -= (2.2 * shape["upper_lip"] - thin) * np.array([0.6, 1, 1, 1, 0.6])
    points[55:60, 1] += (2.8 * shape["lower_lip"] - thin) * np.array([0.6, 1, 1, 1, 0.6])


def _express(points: Floats, expression: str) -> None:
    smile, change = SMILE[expression], GAP[expression] - MEAN_GAP
    points[[65, 66, 67, 55, 56, 57, 58, 59], 1] += 0.85 * change * np.array([1, 1, 1, 0.5, 0.9, 1, 0.9, 0.5])
    points[[61, 62, 63], 1] -= 0.15 * change
    points[5:12, 1] += 0.5 * max(change, 0.0) * np.array([0.3, 0.6, 0.9, 1.0, 0.9, 0.6, 0.3])
    for corner, sign in (([48, 60], -1.0), ([54, 64], 1.0)):
        points[corner] += np.array([10.0 * sign, -7.0]) * smile
    for near, sign in (([49, 59], -1.0), ([53, 55], 1.0)):
        points[near] += np.array([6.0 * sign, -3.5]) * smile
    points[[50, 51, 52], 1] += 1.2 * smile
    points[[58, 57, 56], 1] += -1.0 * smile
    points[[40, 41, 46, 47], 1] -= 1.6 * smile
    points[[31, 35], 0] += np.array([-2.0, 2.0]) * smile


def _bend(points: Floats, shape: dict[str, float], age: float, expression: str) -> Floats:
    """Return the control points [K, 2] bent by shape parameters, age in years and expression."""
    bent = points.copy()
    _shape_outline(bent, shape, age)
    _shape_eyes(bent, shape, age)
    _shape_nose_and_mouth(bent, shape, age)
    _express(bent, expression)
    return bent


@lru_cache(maxsize=1)
def _blend_shapes() -> Floats:
    """Return what each shape parameter, old age and each expression alone do to the controls, [P, K * 2].

    One matrix product with these replaces some hundred small steps a portrait; products of two parameters are lost.
    """
    mean, still = anatomy.control_points(), dict.fromkeys(SHAPE_NAMES, 0.0)
    neutral = _bend(mean, still, 20.0, "neutral")
    alone = [_bend(mean, {**still, name: 1.0}, 20.0, "neutral") - neutral for name in SHAPE_NAMES]
    aged = _bend(mean, still, 80.0, "neutral") - neutral
    faces = [_bend(mean, still, 20.0, name) - mean for name in EXPRESSIONS]
    skewed = np.zeros((3, *mean.shape), np.float32)
    skewed[0, :68, 1] = (mean[:68, 0] - MIDDLE) / 100.0
    skewed[1, 48:68, 1] = (mean[48:68, 0] - MIDDLE) / 60.0
    skewed[2, 27:36, 0] = 1.2
    return np.concatenate([np.stack([*alone, aged, *faces]), skewed]).reshape(-1, mean.size).astype(np.float32)


def shape_controls(traits: Traits, random: np.random.Generator) -> Floats:
    """Return the control points of one person with one expression, [K, 2]; a little asymmetric."""
    mean = anatomy.control_points()
    noise = random.standard_normal((len(mean) - 67, 2), np.float32)
    weights = [*(traits.shape[name] for name in SHAPE_NAMES), smoothstep(40.0, 75.0, traits.age),
               *(float(traits.expression == name) for name in EXPRESSIONS), *noise[-1], noise[0, 0]]  # fmt: skip
    points = mean + (np.array(weights, np.float32) @ _blend_shapes()).reshape(mean.shape)
    points[68:] += noise[:-1]
    return points


def part_weights(traits: Traits) -> Floats:
    """Return the strength of every part of `anatomy.HEIGHT_NAMES` for one person."""
    shape, age = traits.shape, smoothstep(35.0, 75.0, traits.age)
    smile = SMILE[traits.expression]
    fullness = 1.0 + 0.1 * (shape["upper_lip"] + shape["lower_lip"])
    return np.array([
        1.0, 1.0 + 0.12 * shape["nose_height"], 1.0 + 0.35 * shape["nose_tip"], 1.0 + 0.12 * shape["nose_width"],
        1.0 + 0.1 * shape["brow_weight"], 1.0 + 0.35 * shape["brow_weight"], 1.0 + 0.3 * shape["cheekbone"],
        0.35 + 0.9 * smile - 0.2 * age, 0.2 + 0.9 * age + 0.8 * smile, fullness,
        1.0 + 0.25 * shape["chin_width"], 0.15 + 0.9 * age + 0.3 * smile,
    ], np.float32)  # fmt: skip


def build_head(traits: Traits, random: np.random.Generator) -> Head:
    """Return the head of `traits`, framed as FFHQ frames it."""
    control = shape_controls(traits, random)
    change = control - anatomy.control_points()
    offsets = (anatomy.warp_basis() @ change).reshape(GRID, GRID, 2)
    height = (part_weights(traits) @ anatomy.height_basis()).reshape(TEXELS, TEXELS)
    soft = cv2.GaussianBlur(
        cv2.resize(height, (_SOFT, _SOFT), interpolation=cv2.INTER_AREA), (0, 0), 6.0 * _SOFT / FRAME
    )
    rotation = rotation_matrix(traits.yaw, traits.pitch)
    still = Head(traits, offsets, control, height, soft, rotation, np.eye(2, 3, dtype=np.float32))
    zoom = float(np.clip(random.normal(1.0, 0.02), 0.95, 1.05))
    similarity = framing(still._project_controls(68), traits.roll, zoom)
    return Head(traits, offsets, control, height, soft, rotation, similarity)


@lru_cache(maxsize=1)
def _lattice() -> tuple[Floats, Floats]:
    """Return the mean frame's grid nodes [GRID, GRID, 2] and the centres of the picture's coarse cells."""
    nodes = np.linspace(0.0, FRAME, GRID, dtype=np.float32)
    centers = ((np.arange(_CELLS) + 0.5) * (FRAME / _CELLS)).astype(np.float32)
    return np.stack(np.meshgrid(nodes, nodes), axis=-1), np.stack(np.meshgrid(centers, centers), axis=-1)


@dataclass(frozen=True)
class Surface:
    """The head's surface: per pixel [S, S] its mean-face coordinates (frame pixels) and camera depth.

    `coarse` [C, C, 2] holds the same coordinates on a coarse grid, for what is smooth.
    """

    x: Floats
    y: Floats
    depth: Floats
    coarse: Floats
    raster: Raster

    def spread(self, maps: Floats) -> list[Floats]:
        """Return the channels of a smooth map [T, T, C] of the mean frame at every pixel."""
        at = self.coarse * np.float32(maps.shape[0] / FRAME) - np.float32(0.5)
        cells = cv2.remap(maps, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        size = (self.raster.size, self.raster.size)
        return [self.raster.of(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)) for plane in cv2.split(cells)]


def _invert(head: Head) -> tuple[Floats, Floats]:
    """Return, on a coarse grid over the picture, the mean-face point seen there and its depth but for the height."""
    mean, cells = _lattice()
    soft = cv2.remap(head.soft_height, mean * np.float32(_SOFT / FRAME) - np.float32(0.5), None, cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    points = np.concatenate([mean + head.offsets, soft[..., None]], axis=-1).reshape(-1, 3)
    forward = head.place(points).reshape(GRID, GRID, 2)
    linear = (head.similarity[:, :2] @ head.rotation[:2, :2]).astype(np.float32)
    inverse = np.linalg.inv(linear).astype(np.float32)
    rest = forward - cv2.transform(mean, linear)
    seen = cells
    for _ in range(4):
        at = seen * np.float32(1.0 / _NODE)
        there = cv2.remap(rest, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        seen = cv2.transform(cells - there, inverse)
    offset = cv2.remap(
        head.offsets, seen * np.float32(1.0 / _NODE), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    tilt = head.rotation[2:, :2]
    plane = cv2.transform(seen + offset, np.concatenate([tilt, -tilt @ PIVOT[:2, None]], axis=1))
    return seen, plane


def surface_of(head: Head, raster: Raster) -> Surface:
    """Return the surface of `head` at the centres of the window's pixels."""
    seen, plane = _invert(head)
    # Twice linear with a blur between: smooth, and unlike OpenCV's cubic it leaves no ripple on a slope.
    fields = cv2.resize(cv2.merge([seen, plane]), (2 * _CELLS, 2 * _CELLS), interpolation=cv2.INTER_LINEAR)
    fields = cv2.GaussianBlur(fields, (0, 0), 1.4, borderType=cv2.BORDER_REPLICATE)
    x, y, plane = (raster.of(field) for field in cv2.split(cv2.resize(fields, (raster.size, raster.size))))
    scale = np.float32(TEXELS / FRAME)
    height = cv2.remap(head.height, x * scale - 0.5, y * scale - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    depth = (plane + head.rotation[2, 2] * height) * np.float32(np.hypot(*head.similarity[0, :2]))
    return Surface(x, y, depth, seen, raster)
