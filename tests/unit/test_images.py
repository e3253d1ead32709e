"""Decoding hostile images."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefrestore.data.images import UnreadableError, decode, decode_png, encode_png, sharpness

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that claims to be huge and is a few bytes long."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animation() -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def test_16_bit_png_keeps_its_brightness() -> None:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = decode(saved(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(found[:, :, 0], np.rint(values / 257))
    assert (found == found[:, :, :1]).all()


def test_cmyk_jpeg_becomes_rgb() -> None:
    plain = Image.fromarray(np.full((32, 32, 3), (200, 40, 40), np.uint8))
    found = decode(saved(plain.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - (200, 40, 40)).max() < 12


def test_palette_with_alpha_lies_over_white() -> None:
    image = Image.fromarray(np.zeros((32, 32), np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (16, 0, 32, 32))
    found = decode(saved(image, "PNG", transparency=0))
    np.testing.assert_array_equal(found[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(found[0, 31], (255, 0, 0))


def test_exif_rotation_is_undone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = Image.fromarray(np.rot90(PIXELS).copy())
    found = decode(saved(turned, "PNG", exif=exif))
    np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.fromarray(PIXELS), "JPEG")[:200], "damaged"),
        (saved(Image.fromarray(PIXELS), "PNG")[:-40], "damaged"),
        (saved(Image.fromarray(PIXELS[:1, :1]), "PNG"), "smaller than 16 px"),
        (bomb(30000), "too many pixels"),
        (bomb(12000), "too many pixels"),
        (b"this is a text file", "not an image"),
        (b"", "not an image"),
        (animation(), "several frames"),
        (saved(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"), "floating-point"),
        (saved(Image.fromarray(np.full((32, 32), 70000, np.int32)), "TIFF"), "more than 16 bits"),
        (saved(Image.fromarray(PIXELS), "PDF"), "not an image"),
    ],
    ids=["jpeg", "png", "1x1", "bomb", "bomb2", "text", "empty", "gif", "float", "int32", "pdf"],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        decode(data)


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF"]),
)
def test_bytes_never_crash(data: bytes, head: bytes) -> None:
    with pytest.raises(UnreadableError):
        decode(head + data)


@given(place=st.integers(8, 1500), value=st.integers(0, 255))
def test_a_flipped_byte_gives_pixels_or_a_reason(place: int, value: int) -> None:
    data = bytearray(saved(Image.fromarray(PIXELS), "PNG"))
    data[place % len(data)] = value
    try:
        found = decode(bytes(data))
    except UnreadableError:
        return
    assert found.dtype == np.uint8


def test_own_png_is_lossless() -> None:
    np.testing.assert_array_equal(decode_png(encode_png(PIXELS)), PIXELS)
    np.testing.assert_array_equal(decode(encode_png(PIXELS)), PIXELS)


def test_sharpness_falls_with_blur() -> None:
    smooth = np.asarray(Image.fromarray(PIXELS).resize((8, 6)).resize((32, 24)))
    assert sharpness(smooth) < sharpness(PIXELS) / 10
    assert sharpness(np.full((8, 8, 3), 90, np.uint8)) == 0
