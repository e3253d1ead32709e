"""The mean head in a 512 px frame: landmarks, control points, depth and skin maps. All cached, all drawn here.

Coordinates are *frame pixels*: x to the right, y down, (0, 0) to (512, 512), z towards the viewer.
Landmarks follow the iBUG 68-point order.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

FRAME = 512.0
MIDDLE = 256.0
TEXELS = 192
GRID = 65

_LEFT_JAW = ((113, 247), (116, 284), (121, 320), (128, 355), (142, 389), (164, 419), (192, 444), (222, 461))
_LEFT_BROW = ((139, 217), (156, 202), (181, 196), (207, 199), (231, 208))
_LEFT_EYE = ((167, 244), (182, 233), (202, 233), (220, 246), (202, 250), (183, 250))
_NOSE = ((256, 236), (256, 261), (256, 286), (256, 311), (225, 327), (240, 333), (256, 338))
_LEFT_LIPS = ((199, 371), (219, 361), (242, 355), (256, 359))
# Outer rows from the crown to below the chin: y, half width, depth at the midline, depth at the contour.
_ROWS = np.array([
    (34, 34, -100, -118), (44, 60, -72, -118), (60, 85, -42, -118), (85, 108, -16, -118), (120, 127, 3, -117),
    (160, 138, 13, -114), (200, 143, 18, -111), (247, 143, 12, -108), (284, 140, 8, -104), (320, 135, 8, -96),
    (355, 128, 12, -86), (389, 114, 15, -74), (419, 92, 15, -54), (444, 64, 13, -32), (461, 38, 4, -18),
    (473, 34, -18, -40), (496, 34, -80, -100), (512, 34, -110, -130),
], dtype=np.float64)  # fmt: skip
_EXTRA = (
    (256, 118), (196, 122), (150, 140), (130, 180), (256, 44), (190, 56), (146, 92), (96, 238), (98, 285), (112, 335),
    (256, 480), (150, 490), (20, 20), (20, 256), (20, 500), (256, -10), (256, 525), (100, 20), (160, 290), (185, 335),
)  # fmt: skip


def _mirror(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([FRAME - points[:, 0], points[:, 1]], axis=1)


@lru_cache(maxsize=1)
def mean_landmarks() -> NDArray[np.float32]:
    """Return the 68 landmarks of the mean face, [68, 2]; the mouth is open by a few pixels, to open and close."""
    jaw = np.array(_LEFT_JAW, np.float32)
    brow, eye = np.array(_LEFT_BROW, np.float32), np.array(_LEFT_EYE, np.float32)
    nose, lips = np.array(_NOSE, np.float32), np.array(_LEFT_LIPS, np.float32)
    other_eye = _mirror(eye)[[3, 2, 1, 0, 5, 4]]
    lower = np.array([(293, 389), (275, 400), (256, 403), (237, 400), (219, 389)], np.float32)
    inner = np.array([(207, 371), (240, 370), (256, 371), (272, 370), (305, 371), (272, 376), (256, 377), (240, 376)])
    return np.concatenate([
        jaw, [[256, 468]], _mirror(jaw)[::-1], brow, _mirror(brow)[::-1], nose, _mirror(nose[4:6])[::-1],
        eye, other_eye, lips, _mirror(lips[:3])[::-1], lower, inner,
    ]).astype(np.float32)  # fmt: skip


@lru_cache(maxsize=1)
def control_points() -> NDArray[np.float32]:
    """Return landmarks and the further points that carry the warp (forehead, skull, ears, frame), [K, 2]."""
    extra = np.array(_EXTRA, np.float32)
    paired = extra[np.abs(extra[:, 0] - MIDDLE) > 1.0]
    return np.concatenate([mean_landmarks(), extra, _mirror(paired)])


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return squared * np.log(np.maximum(squared, 1e-9))


@lru_cache(maxsize=1)
def warp_basis() -> NDArray[np.float32]:
    """Return the thin-plate spline as a matrix [GRID*GRID, K]: offsets of control points to offsets of grid nodes."""
    points = control_points().astype(np.float64) / FRAME
    count = len(points)
    affine = np.concatenate([np.ones((count, 1)), points], axis=1)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(points, points) + 1e-7 * np.eye(count)
    system[:count, count:], system[count:, :count] = affine, affine.T
    nodes = np.stack(np.meshgrid(*[np.linspace(0.0, 1.0, GRID)] * 2), axis=-1).reshape(-1, 2)
    rows = np.concatenate([_kernel(nodes, points), np.ones((len(nodes), 1)), nodes], axis=1)
    return np.ascontiguousarray((rows @ np.linalg.inv(system))[:, :count], dtype=np.float32)


@lru_cache(maxsize=4)
def _axes(texels: int = TEXELS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x (from the midline) and y of every texel, in frame pixels."""
    line = (np.arange(texels) + 0.5) * FRAME / texels
    return np.meshgrid(line - MIDDLE, line)


def bump(
    x: float, y: float, width: float, height: float, angle: float = 0.0, texels: int = TEXELS
) -> NDArray[np.float64]:
    """Return a Gaussian at distance `x` from the midline (mirrored to both sides) turned by `angle` degrees."""
    grid_x, grid_y = _axes(texels)
    dx, dy = np.abs(grid_x) - x, grid_y - y
    turn = np.deg2rad(angle)
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, -np.sin(turn) * dx + np.cos(turn) * dy
    return np.exp(-0.5 * ((along / width) ** 2 + (across / height) ** 2))


def _skull() -> NDArray[np.float64]:
    grid_x, grid_y = _axes()
    rows = np.clip(grid_y[:, 0], _ROWS[0, 0], _ROWS[-1, 0])
    half, middle, side = (PchipInterpolator(_ROWS[:, 0], _ROWS[:, column])(rows)[:, None] for column in (1, 2, 3))
    ratio = np.abs(grid_x) / half
    inside = np.sqrt(1.0 - np.minimum(ratio, 0.94) ** 2)
    curve = np.where(ratio < 0.94, inside, 0.341 - 2.755 * (np.minimum(ratio, 1.6) - 0.94))
    return cv2.GaussianBlur(side + (middle - side) * curve, (0, 0), 2.0)


def _nose_ridge() -> NDArray[np.float64]:
    grid_x, grid_y = _axes()
    heights = PchipInterpolator(
        (215, 226, 240, 262, 286, 304, 315, 323, 331, 339, 348), (0, 2, 7, 15, 24, 31, 34, 32, 23, 8, 0)
    )
    widths = PchipInterpolator((215, 262, 290, 314, 348), (13, 15, 18, 22, 24))
    rows = np.clip(grid_y[:, :1], 215, 345)
    return heights(rows) * np.exp(-(np.abs(grid_x / (1.3 * widths(rows))) ** 2.0))


def _line(points: tuple[tuple[float, float], ...], blur: float, texels: int) -> NDArray[np.float64]:
    """Return a soft mirrored stroke through `points` (x from the midline, y), peak about 1."""
    image = np.zeros((texels * 2, texels * 2), np.uint8)
    scale = 2 * texels / FRAME
    curve = PchipInterpolator(np.linspace(0, 1, len(points)), np.array(points))(np.linspace(0, 1, 40))
    for sign in (-1, 1):
        pixels = np.stack([MIDDLE + sign * curve[:, 0], curve[:, 1]], axis=1) * scale
        cv2.polylines(image, [np.round(pixels * 16).astype(np.int32)], False, 255, 2, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(image.astype(np.float64), (0, 0), blur * scale)
    soft = cv2.resize(soft, (texels, texels), interpolation=cv2.INTER_AREA)
    return soft / soft.max()


HEIGHT_NAMES = ("skull", "nose", "tip", "alae", "sockets", "brow", "cheekbone", "apple", "fold", "lips", "chin", "bags")


@lru_cache(maxsize=1)
def height_basis() -> NDArray[np.float32]:
    """Return the depth of each part named in `HEIGHT_NAMES` over the mean frame, [K, TEXELS * TEXELS], frame pixels."""
    eyes = (-16.0 * bump(62, 236, 34, 22) - 5.0 * bump(34, 236, 13, 14) + 15.0 * bump(63, 242, 23, 15)
            - 3.0 * bump(63, 224, 24, 5))  # fmt: skip
    muzzle = 9.0 * bump(0, 366, 48, 34) - 3.0 * bump(0, 346, 4.5, 8) + 2.0 * bump(9, 346, 4, 9)
    base = (
        _skull()
        + muzzle
        - 6.0 * bump(118, 190, 22, 40)
        + 4.0 * bump(45, 150, 40, 30)
        - 4.0 * bump(84, 352, 26, 30)
        + 4.0 * bump(0, 232, 12, 16)
    )
    lips = (7.0 * bump(14, 361, 20, 6) + 4.0 * bump(0, 361, 8, 5) + 9.0 * bump(0, 390, 27, 8)
            - 5.0 * bump(0, 373, 40, 3.4) - 5.0 * bump(0, 411, 30, 8) - 1.0 * bump(57, 372, 6, 6))  # fmt: skip
    parts = (
        base, _nose_ridge(), 11.0 * bump(0, 315, 15, 13), 13.0 * bump(25, 323, 11, 10) - 2.0 * bump(40, 321, 4, 12),
        eyes, 8.0 * bump(58, 208, 40, 12, 4) + 4.0 * bump(0, 209, 16, 14), 12.0 * bump(90, 286, 30, 24, -20),
        9.0 * bump(72, 318, 25, 22), -5.0 * _line(((39, 318), (53, 340), (64, 362), (70, 384)), 4.5, TEXELS),
        lips, 11.0 * bump(0, 442, 27, 17) + 4.0 * bump(32, 438, 18, 14),
        -4.0 * _line(((38, 258), (55, 268), (75, 268), (90, 258)), 4.0, TEXELS) + 3.0 * bump(62, 259, 20, 5),
    )  # fmt: skip
    return np.ascontiguousarray(np.stack(parts).reshape(len(parts), -1), dtype=np.float32)


@lru_cache(maxsize=1)
def _wrinkles() -> list[NDArray[np.float64]]:
    texels = 2 * TEXELS
    forehead = sum((_line(((0, y), (30, y - 4), (62, y - 1), (92, y + 9)), 1.6, texels) for y in (136, 154, 172)), 0.0)
    frown = _line(((9, 190), (10, 205), (12, 217)), 1.5, texels)
    corner = sum((_line(((93, 243), (108, y), (121, y + dy)), 1.2, texels)
                  for y, dy in ((231, -10), (242, -2), (252, 6), (262, 13))), 0.0)  # fmt: skip
    under = _line(((42, 262), (58, 271), (78, 269)), 1.2, texels) + _line(
        ((48, 258), (64, 264), (84, 258)), 1.0, texels
    )
    mouth = (_line(((39, 320), (53, 341), (63, 362), (68, 382)), 2.0, texels)
             + 0.6 * _line(((60, 386), (64, 404), (62, 420)), 1.8, texels))  # fmt: skip
    return [np.asarray(forehead) + frown, np.asarray(corner) + under, mouth]


def _beard_region() -> NDArray[np.float64]:
    """Return where a full beard grows, 0..1, soft at the cheek line."""
    texels = 2 * TEXELS
    image = np.zeros((texels, texels), np.float64)
    half = ((0, 341), (-30, 341), (-48, 353), (-66, 366), (-90, 360), (-112, 326), (-124, 270), (-170, 262),
            (-170, 440), (-90, 505), (0, 505))  # fmt: skip
    outline = [(MIDDLE + x, y) for x, y in half] + [(MIDDLE - x, y) for x, y in half[::-1]]
    cv2.fillPoly(image, [(np.array(outline) * (texels / FRAME)).astype(np.int32)], 1.0)
    return cv2.GaussianBlur(image, (0, 0), 7.0 * texels / FRAME)


@lru_cache(maxsize=1)
def skin_maps() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return maps over the mean frame: of skin and of beards, [TEXELS/2, TEXELS/2, 3], of wrinkles, [2*TEXELS, .., 3].

    Channels: redness, darkness, oil; beard, its middle (goatee), both; wrinkles of forehead, eyes and mouth.
    """
    texels = 2 * TEXELS

    def spot(x: float, y: float, width: float, height: float, angle: float = 0.0) -> NDArray[np.float64]:
        return bump(x, y, width, height, angle, texels)

    redness = (0.8 * spot(80, 305, 30, 24) + 0.9 * spot(0, 318, 22, 14) + 0.4 * spot(0, 442, 26, 14)
               + 0.7 * spot(150, 285, 18, 60) + 0.25 * spot(40, 255, 14, 6))  # fmt: skip
    dark = 0.9 * spot(52, 261, 22, 7, -6) + 0.75 * spot(33, 240, 9, 13) + 0.6 * spot(63, 222, 28, 6)
    oil = (spot(0, 150, 52, 30) + 1.3 * spot(0, 308, 9, 12) + 0.7 * spot(0, 270, 7, 24) + 0.9 * spot(82, 288, 20, 13)
           + 0.8 * spot(0, 442, 14, 9) + 0.25)  # fmt: skip
    beard = _beard_region()
    mouth = spot(0, 400, 75, 66)
    beard *= 1.0 - 0.75 * spot(0, 416, 40, 4) * spot(0, 416, 30, 60)
    middle = np.clip(spot(0, 408, 40, 56) * 2.2 - 0.8, 0.0, 1.0)
    goatee = middle * np.minimum(1.0, mouth * 2)
    beards = [np.minimum(beard, 1.0), goatee, np.minimum(beard, goatee)]
    skin, hair, fine = (
        np.stack(group, axis=-1).astype(np.float32) for group in ([redness, dark, oil], beards, _wrinkles())
    )
    small = (TEXELS // 2, TEXELS // 2)
    return (
        cv2.resize(skin, small, interpolation=cv2.INTER_AREA),
        cv2.resize(hair, small, interpolation=cv2.INTER_AREA),
        fine,
    )
