"""Photographs as people keep them: read whole, turned upright, written with what they carried."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from prefrestore.data.images import MAX_PIXELS, UnreadableError, opened, to_rgb
from prefrestore.errors import UserError

ORIENTATION, BITS_PER_SAMPLE, ICC_TAG = 0x0112, 0x0102, 34675
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
JPEG_QUALITY = 95
DEEP = 257
"""What an 8-bit value is multiplied with to be a 16-bit one."""


@dataclass(frozen=True)
class Photograph:
    """A photograph, upright.

    Attributes:
        pixels: RGB [H, W, 3], uint8 or uint16.
        alpha: opacity [H, W] of the same type; None: opaque.
        grey: it has no colours, and gets none when it is written.
        icc: colour profile of the pixels; None: sRGB is taken for granted.
        exif: what the camera noted, without the orientation.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None

    @property
    def deep(self) -> bool:
        """Whether it has 16 bits a channel."""
        return bool(self.pixels.dtype == np.uint16)

    def rgb8(self) -> np.ndarray:
        """Return the pixels as 8-bit RGB [H, W, 3], transparency laid over white."""
        if self.alpha is None and not self.deep:
            return self.pixels
        return np.asarray(to_rgb(self.picture()))

    def picture(self) -> Image.Image:
        """Return it as a picture of 8 bits a channel, with its transparency."""
        picture = Image.fromarray(_to_8(self.pixels)).convert("L" if self.grey else "RGB")
        if self.alpha is not None:
            picture.putalpha(Image.fromarray(_to_8(self.alpha)))
        return picture


def read_photograph(data: bytes, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read an image file of at most ``max_pixels``.

    Raises:
        UnreadableError: the reason, in few words.
    """
    with opened(data, max_pixels) as image:
        exif = image.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        icc = image.info.get("icc_profile")
        noted = exif.tobytes() if len(exif) else None
        deep = _is_deep(image, data)
        pixels, alpha, grey = (_deep_channels if deep else _channels)(image, data)
    if icc and (image.mode in {"CMYK", "YCCK", "P", "PA"} or (image.mode.startswith(("L", "I")) != grey)):
        icc = None  # a profile of other channels than are kept
    upright = (_upright(part, orientation) if part is not None else None for part in (pixels, alpha))
    turned, opacity = upright
    assert turned is not None
    return Photograph(turned, opacity, grey, icc, noted)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16  # the bit depth in IHDR, which is always first
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
        return max(bits if isinstance(bits, tuple) else (bits,)) == 16
    return image.mode.startswith("I")


def _channels(image: Image.Image, _: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    has_alpha = image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info
    grey = image.mode in {"L", "LA", "La", "1"}
    if has_alpha:
        values = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3]), grey
    return np.array(to_rgb(image)), None, grey


def _deep_channels(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    image.load()  # tells what is damaged
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != image.size[::-1]:
        raise UnreadableError("16 bits a channel in a layout that is not known")
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2), None, True
    alpha = np.ascontiguousarray(values[..., 3]) if values.shape[2] == 4 else None
    return np.ascontiguousarray(values[..., 2::-1]), alpha, False


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn [H, W, ...] by an EXIF orientation; an unknown one says nothing."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def _to_8(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + DEEP // 2) // DEEP).astype(np.uint8)


def check_suffix(path: Path) -> None:
    """Refuse names of formats that are not written.

    Raises:
        UserError: it is such a name.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: photographs are written as PNG, JPEG, WebP or TIFF: give a name that ends in .png")


def encode_photograph(photograph: Photograph, suffix: str) -> bytes:
    """Encode as a file name's suffix says; equal pixels give equal bytes.

    JPEG and WebP have 8 bits a channel; JPEG has no transparency: it is laid over white. 16-bit files keep their
    profile, but not what the camera noted.
    """
    if photograph.deep and suffix.lower() in DEEP_SUFFIXES:
        return _encode_deep(photograph, suffix.lower())
    picture = photograph.picture()
    if suffix.lower() in {".jpg", ".jpeg"} and photograph.alpha is not None:
        picture = to_rgb(picture).convert("L" if photograph.grey else "RGB")
    formats: Mapping[str, Mapping[str, Any]] = {
        ".png": {"format": "PNG", "compress_level": 6},
        ".jpg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0},
        ".webp": {"format": "WEBP", "lossless": True, "exact": True},
        ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    }
    options = formats[{".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix.lower(), suffix.lower())]
    carried: Mapping[str, Any] = {"icc_profile": photograph.icc, "exif": photograph.exif}
    target = io.BytesIO()
    picture.save(target, **options, **{name: value for name, value in carried.items() if value})
    return target.getvalue()


def _encode_deep(photograph: Photograph, suffix: str) -> bytes:
    channels = [photograph.pixels[..., :1]] if photograph.grey else [photograph.pixels]
    if photograph.alpha is not None:
        channels = [photograph.pixels, photograph.alpha[..., None]]
    values = np.concatenate(channels, axis=2)
    if suffix == ".png":
        order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[values.shape[2]]
        ordered = values if order is None else cv2.cvtColor(values, order)
        kinds, parts = [], []
        if photograph.icc:
            kinds, parts = [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(photograph.icc, np.uint8)]
        return bytes(cv2.imencodeWithMetadata(".png", ordered, kinds, parts)[1].tobytes())
    target = io.BytesIO()
    tifffile.imwrite(
        target,
        values[..., 0] if values.shape[2] == 1 else values,
        photometric="minisblack" if values.shape[2] == 1 else "rgb",
        extrasamples=["unassalpha"] if values.shape[2] == 4 else None,
        compression="adobe_deflate",
        iccprofile=photograph.icc,
        metadata=None,
        software=False,
    )
    return target.getvalue()
