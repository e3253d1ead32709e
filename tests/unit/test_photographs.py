"""Photographs as files: what they carry is kept; nothing a stranger sends is more than a reason."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from prefrestore.data.images import UnreadableError
from prefrestore.data.photographs import Photograph, encode_photograph, read_photograph

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKE, ORIENTATION = 0x010F, 0x0112


def noise(*shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape, dtype=np.uint8 if top == 256 else np.uint16)


def stored(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_a_file_carries_comes_back(suffix: str, mode: str) -> None:
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "maker", 6
    image = Image.fromarray(noise(20, 30, 4), "RGBA").convert(mode)
    options = {"icc_profile": PROFILE} if mode.startswith("RGB") else {}
    data = stored(image, exif=exif, **options)
    first = read_photograph(data)
    again = read_photograph(encode_photograph(first, suffix))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(first.pixels, np.asarray(upright.convert("RGB")))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.alpha is None) == (again.alpha is None) == (not mode.endswith("A"))
    if first.alpha is not None:
        np.testing.assert_array_equal(first.alpha, np.asarray(upright.getchannel("A")))
        np.testing.assert_array_equal(first.alpha, again.alpha)
    assert first.icc == again.icc == options.get("icc_profile")
    noted = Image.open(io.BytesIO(encode_photograph(first, suffix))).getexif()
    assert (noted[MAKE], noted.get(ORIENTATION, 1)) == ("maker", 1)
    assert encode_photograph(first, suffix) == encode_photograph(first, suffix)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay_sixteen_bits(suffix: str, channels: int) -> None:
    values = noise(20, 30, channels, top=65536)
    pixels = np.repeat(values, 3, axis=2) if channels == 1 else values[..., :3]
    alpha = values[..., 3] if channels == 4 else None
    whole = Photograph(pixels, alpha, channels == 1, None if channels == 1 else PROFILE)
    again = read_photograph(encode_photograph(whole, suffix))
    assert again.deep
    assert again.grey == (channels == 1)
    assert again.icc == whole.icc
    np.testing.assert_array_equal(again.pixels, pixels)
    assert (again.alpha is None) == (alpha is None)
    assert np.abs(again.rgb8().astype(int) - whole.rgb8()).max() == 0


def test_sixteen_bits_become_eight_where_the_format_has_no_more() -> None:
    whole = Photograph(noise(20, 30, 3, top=65536))
    again = read_photograph(encode_photograph(whole, ".webp"))
    assert np.abs(again.pixels - whole.pixels / 257).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = stored(Image.fromarray(noise(20, 30, 3)), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(read_photograph(data).pixels, expected)


def test_print_colours_and_palettes_lose_the_profile_that_fits_no_more() -> None:
    cmyk = read_photograph(stored(Image.fromarray(noise(20, 30, 4), "CMYK"), "TIFF", icc_profile=PROFILE))
    palette = read_photograph(stored(Image.fromarray(noise(20, 30, 3)).convert("P"), icc_profile=PROFILE))
    assert cmyk.icc is palette.icc is None
    assert cmyk.pixels.shape == palette.pixels.shape == (20, 30, 3)


def test_a_jpeg_lays_transparency_over_white() -> None:
    clear = Photograph(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    assert read_photograph(encode_photograph(clear, ".jpg")).pixels.min() > 250


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]), st.booleans())
def test_damaged_files_give_a_reason_or_a_picture(place: int, value: int, form: str, cut: bool) -> None:
    data = bytearray(stored(Image.fromarray(noise(24, 24, 3)), form))
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] = value
    with suppress(UnreadableError):
        assert read_photograph(bytes(data)).pixels.ndim == 3
