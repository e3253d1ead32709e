"""Decoding images that strangers made, and encoding our own."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
MIN_SIDE = 16
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
PNG_LEVEL = 1


class UnreadableError(Exception):
    """An image that cannot be used; the message is the reason."""


def read_file(payload: Path | bytes, problem: str = "") -> bytes:
    """Return the bytes of an image file.

    Raises:
        UnreadableError: ``problem``, if there is one known already, or what the system says.
    """
    if problem:
        raise UnreadableError(problem)
    if isinstance(payload, bytes):
        return payload
    try:
        return payload.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror})") from None


@contextmanager
def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong while it is looked at becomes a reason.

    Raises:
        UnreadableError: the reason, in few words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check(image, max_pixels)
                yield image
        except UnreadableError:
            raise
        except Image.DecompressionBombError:
            raise UnreadableError("too many pixels") from None
        except Image.UnidentifiedImageError:
            raise UnreadableError("not an image of a known format") from None
        except Exception as error:  # decoders raise anything on hostile bytes; each becomes a stated reason
            raise UnreadableError(f"damaged ({type(error).__name__})") from error


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to 8-bit RGB [H, W, 3], turned upright, transparency laid over white.

    Raises:
        UnreadableError: the reason, in few words.
    """
    with opened(data, max_pixels) as image:
        return np.array(to_rgb(ImageOps.exif_transpose(image)))


def _check(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableError("too many pixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableError(f"smaller than {MIN_SIDE} px")
    if getattr(image, "n_frames", 1) > 1:
        raise UnreadableError("several frames")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB, transparency laid over white.

    Raises:
        UnreadableError: its values have no meaning as 8 or 16 bits.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel, also where Pillow widens them to 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise UnreadableError("more than 16 bits a channel")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableError("floating-point pixels")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def encode_png(image: np.ndarray) -> bytes:
    """Encode 8-bit RGB [H, W, 3] as PNG, compressed lightly: speed before size."""
    flags = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """Decode a PNG that :func:`encode_png` wrote to 8-bit RGB [H, W, 3]."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def sharpness(image: np.ndarray) -> float:
    """Return the variance of the Laplacian of the grey image (range 0 to 1): near zero where nothing is in focus."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())
