"""Applying a degradation record: from HQ to LQ pixels, exactly repeatable.

Inside, images are float32 [H, W, 3], RGB, on the scale of 0 to 255.
"""

from __future__ import annotations

import cv2
import numpy as np

from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import (
    Blur,
    ColourJitter,
    ColourShift,
    DegradationRecord,
    GaussianNoise,
    Grey,
    Jpeg,
    Motion,
    Operation,
    PoissonNoise,
    Resize,
    Sinc,
)
from prefrestore.data.resampling import correlate, correlate_resize, resize

FULL = 255.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def degrade(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Return the LQ image of a record.

    Args:
        hq: 8-bit RGB [H, W, 3] of the record's size; it is left as it is.
        record: what to do; the same record gives the same pixels.

    Raises:
        ValueError: the image is of another size or type.
    """
    if hq.shape[:2] != (record.height, record.width):
        raise ValueError(f"image is {hq.shape[:2]}, its record is for {record.height} x {record.width}")
    if hq.dtype != np.uint8:
        raise ValueError(f"image is {hq.dtype}, expected uint8")
    return _to_8bit(_apply(hq, record.operations), record.rounding)


def degrade_small(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Return the LQ image before its size is restored: 8-bit RGB, as small as the degradation made it."""
    last = max(place for place, operation in enumerate(record.operations) if isinstance(operation, Resize))
    return _to_8bit(_apply(hq, record.operations[:last] + record.operations[last + 1 :]), "nearest")


def _to_8bit(image: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "nearest":
        np.rint(image, out=image)
    return _clip(image).astype(np.uint8)


def _apply(image: np.ndarray, operations: tuple[Operation, ...]) -> np.ndarray:
    """Apply operations in order; a blur and the resize after it go together.

    Only the first float image is copied from the 8-bit one: from then on every operation may write into its input.
    """
    place = 0
    while place < len(operations):
        operation, follower = operations[place], operations[place + 1 : place + 2]
        if isinstance(operation, Blur | Sinc | Motion) and follower and isinstance(follower[0], Resize):
            image = correlate_resize(image, kernel_of(operation), follower[0])
            place += 1
        else:
            image = _apply_one(image.astype(np.float32, copy=False), operation)
        place += 1
    return image.astype(np.float32, copy=False)


def _apply_one(image: np.ndarray, operation: Operation) -> np.ndarray:
    match operation:
        case Blur() | Sinc() | Motion():
            return correlate(image, kernel_of(operation))
        case Resize():
            return resize(image, operation)
        case GaussianNoise():
            return _gaussian_noise(image, operation)
        case PoissonNoise():
            return _poisson_noise(image, operation)
        case Jpeg():
            return _jpeg(image, operation.quality)
        case ColourShift():
            return _add(image, np.array([operation.red, operation.green, operation.blue], np.float32))
        case ColourJitter():
            return _colour_jitter(image, operation)
        case Grey():
            return _luma(image).repeat(3, axis=2)


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, FULL, out=image)


def _add(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    image += change
    return _clip(image)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _gaussian_noise(image: np.ndarray, noise: GaussianNoise) -> np.ndarray:
    shape = (*image.shape[:2], 1 if noise.grey else image.shape[2])
    field = _generator(noise.seed).standard_normal(shape, np.float32)
    field *= np.float32(noise.sigma)
    return _add(image, field)


def _poisson_noise(image: np.ndarray, noise: PoissonNoise) -> np.ndarray:
    """Add ``scale * (Poisson(levels * x) / levels - x)``, levels being the number of values in x, as a power of two.

    Source: BasicSR, used by Real-ESRGAN (arXiv 2107.10833, section 3.2).
    """
    clean = np.clip(np.rint(_luma(image) if noise.grey else image), 0, FULL)
    levels = 2 ** np.ceil(np.log2(len(np.unique(clean))))
    counts = _generator(noise.seed).poisson(clean / FULL * levels)
    return _add(image, ((counts / levels * FULL - clean) * noise.scale).astype(np.float32))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    rounded = _to_8bit(image, "nearest")
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rounded, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32)


def _luma(image: np.ndarray) -> np.ndarray:
    """Return luma [H, W, 1]."""
    return (image @ LUMA)[:, :, None]


def _colour_jitter(image: np.ndarray, jitter: ColourJitter) -> np.ndarray:
    """Change brightness, contrast, saturation and hue as torchvision does (GFPGAN's second jitter)."""
    for name in jitter.order:
        match name:
            case "brightness":
                image = _clip(image * np.float32(jitter.brightness))
            case "contrast":
                image = _blend(image, _luma(image).mean(), jitter.contrast)
            case "saturation":
                image = _blend(image, _luma(image), jitter.saturation)
            case "hue":
                image = _turn_hue(image, jitter.hue)
    return image


def _blend(image: np.ndarray, other: np.ndarray | np.floating, factor: float) -> np.ndarray:
    return _clip((image * np.float32(factor) + other * np.float32(1 - factor)).astype(np.float32))


def _turn_hue(image: np.ndarray, turns: float) -> np.ndarray:
    hsv = cv2.cvtColor(image / np.float32(FULL), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(turns * 360)) % np.float32(360)
    return _clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(FULL))
