"""The procedural portraits: repeatable, well formed, captioned by what they show, the same at every size."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from prefrestore.data.portraits import Portrait, Traits, draw_traits, render, render_traits
from prefrestore.data.portraits.anatomy import control_points, mean_landmarks
from prefrestore.data.portraits.geometry import framing, smoothstep
from prefrestore.data.portraits.raster import Raster
from prefrestore.data.portraits.traits import EXPRESSIONS, FACIAL_HAIR, GLASSES, HAIR_COLORS

COUNT = 24
SIZE = 128


@pytest.fixture(scope="module")
def portraits() -> list[Portrait]:
    return [render(index, SIZE, seed=0) for index in range(COUNT)]


def plain(index: int = 3, **changes: object) -> Traits:
    """Return traits with nothing in front of the face, and the given changes."""
    bare = {"glasses": "none", "facial_hair": "none", "hair_style": "short", "hair_color": "dark brown",
            "grey": 0.0,
            "yaw": 0.0, "pitch": 0.0, "roll": 0.0, "freckles": False, "expression": "neutral",
            "melanin": 0.25}  # fmt: skip
    return draw_traits(index, 0).but(**{**bare, **changes})


def eye_box(portrait: Portrait, eye: slice, margin: int = 0) -> tuple[slice, slice]:
    low, high = portrait.landmarks[eye].min(0), portrait.landmarks[eye].max(0)
    return (
        slice(int(low[1]) - margin, int(high[1]) + 2 + margin),
        slice(int(low[0]) - margin, int(high[0]) + 2 + margin),
    )


def test_equal_bytes_whatever_the_order(portraits: list[Portrait]) -> None:
    for index in (17, 2, 9):
        again = render(index, SIZE, seed=0)
        assert (
            hashlib.sha256(again.image.tobytes()).digest() == hashlib.sha256(portraits[index].image.tobytes()).digest()
        )
        assert again.landmarks.tobytes() == portraits[index].landmarks.tobytes()
        assert again.caption == portraits[index].caption


def test_another_seed_is_another_person(portraits: list[Portrait]) -> None:
    assert render(0, SIZE, seed=1).image.tobytes() != portraits[0].image.tobytes()
    assert draw_traits(0, 1) != draw_traits(0, 0)


def test_types_and_shapes(portraits: list[Portrait]) -> None:
    for portrait in portraits:
        assert portrait.image.shape == (SIZE, SIZE, 3)
        assert portrait.image.dtype == np.uint8
        assert portrait.landmarks.shape == (68, 2)
        assert portrait.landmarks.dtype == np.float32


@pytest.mark.parametrize("size", [31, 1025])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="image_size"):
        render(0, size, 0)


def test_landmarks_lie_where_their_names_say(portraits: list[Portrait]) -> None:
    for portrait in portraits:
        points = portrait.landmarks
        assert points.min() > 0
        assert points.max() < SIZE - 1
        left, right, brows = points[36:42].mean(0), points[42:48].mean(0), points[17:27]
        assert left[0] < points[27:31, 0].mean() < right[0]
        assert np.all(np.diff(points[27:31, 1]) > 0), "the bridge of the nose runs down"
        assert brows[:, 1].mean() < left[1] < points[33, 1] < points[51, 1] < points[57, 1] < points[8, 1]
        assert points[:8, 0].max() < points[8, 0] < points[9:17, 0].min()
        assert np.all(points[61:64, 1] < points[[67, 66, 65], 1]), "upper inner lip above the lower one"
        assert points[0, 0] < points[36, 0]
        assert points[45, 0] < points[16, 0]


def test_framing_is_that_of_ffhq(portraits: list[Portrait]) -> None:
    """The alignment rule puts the eyes' middle at y = 0.47 and 0.25-0.28 of the width apart."""
    eyes = np.stack([[p.landmarks[36:42].mean(0), p.landmarks[42:48].mean(0)] for p in portraits]) / SIZE
    middle, apart = eyes.mean(1), np.linalg.norm(eyes[:, 1] - eyes[:, 0], axis=1)
    np.testing.assert_allclose(middle[:, 1], 0.47, atol=0.03)
    np.testing.assert_allclose(middle[:, 0], 0.5, atol=0.03)
    assert np.all((apart > 0.20) & (apart < 0.28))


def test_framing_undoes_any_similarity() -> None:
    turn = np.deg2rad(13.0)
    points = mean_landmarks()
    moved = 0.6 * points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], np.float32) + 40.0
    framed = [
        p @ framing(p, 0.0, 1.0)[:, :2].T + framing(p, 0.0, 1.0)[:, 2] for p in (points, moved.astype(np.float32))
    ]
    np.testing.assert_allclose(framed[0], framed[1], atol=0.02)


def test_pupils_are_dark_inside_the_lids() -> None:
    portrait = render_traits(plain(eye_color="dark brown"), 256, 0, 3)
    grey = portrait.image.mean(2)
    for eye in (slice(36, 42), slice(42, 48)):
        rows, columns = eye_box(portrait, eye)
        patch = cv2.GaussianBlur(grey[rows, columns], (0, 0), 2.0)
        darkest = np.array(np.unravel_index(patch.argmin(), patch.shape))[::-1] + [columns.start, rows.start]
        assert np.linalg.norm(darkest - portrait.landmarks[eye].mean(0)) < 7.0
        cheek = portrait.landmarks[eye].mean(0).astype(int) + [0, 34]
        assert patch.min() < 0.6 * grey[cheek[1], cheek[0]]


def test_open_mouth_shows_a_hole_between_the_inner_lips() -> None:
    closed, opened = (render_traits(plain(expression=name), SIZE, 0, 3) for name in ("neutral", "open mouth"))
    gaps = [p.landmarks[66, 1] - p.landmarks[62, 1] for p in (closed, opened)]
    assert gaps[0] < 1.0 < 4.0 < gaps[1]
    center = opened.landmarks[[62, 66]].mean(0).round().astype(int)
    cheek = opened.landmarks[41].round().astype(int) + [0, 12]
    assert opened.image[center[1] + 1, center[0]].sum() < 0.6 * opened.image[cheek[1], cheek[0]].sum()


def test_yaw_moves_the_nose_against_the_eyes() -> None:
    left, right = (render_traits(plain(yaw=angle), 64, 0, 3).landmarks for angle in (-15.0, 15.0))
    assert left[30, 0] - left[36:48, 0].mean() < -1.0 < 1.0 < right[30, 0] - right[36:48, 0].mean()


@pytest.mark.parametrize("glasses", GLASSES[1:])
def test_glasses_are_drawn_around_the_eyes_and_named(glasses: str) -> None:
    without, wearing = (render_traits(plain(glasses=kind), SIZE, 0, 3) for kind in ("none", glasses))
    change = np.abs(wearing.image.astype(int) - without.image).sum(2)
    rows, columns = eye_box(without, slice(36, 48), margin=8)
    assert change[rows, columns].mean() > 8.0
    assert change[SIZE - 25 :].max() == 0, "nothing changes far below"
    assert "glasses" in wearing.caption
    assert "glasses" not in without.caption
    np.testing.assert_array_equal(wearing.landmarks, without.landmarks)


@pytest.mark.parametrize("kind", FACIAL_HAIR[1:])
def test_facial_hair_darkens_the_lower_face_and_is_named(kind: str) -> None:
    bare, grown = (render_traits(plain(facial_hair=name), SIZE, 0, 3) for name in ("none", kind))
    lip = bare.landmarks[[33, 51]].mean(0).round().astype(int)
    below = (slice(lip[1] - 1, lip[1] + 2), slice(lip[0] - 8, lip[0] + 9))
    assert grown.image[below].mean() < bare.image[below].mean() - 4.0
    assert kind in grown.caption
    assert kind not in bare.caption
    forehead = bare.landmarks[27].round().astype(int) - [0, 25]
    np.testing.assert_array_equal(bare.image[forehead[1], forehead[0]], grown.image[forehead[1], forehead[0]])


def test_captions_agree_with_traits(portraits: list[Portrait]) -> None:
    for portrait in portraits:
        traits, text = portrait.traits, portrait.caption
        assert ("glasses" in text) == (traits.glasses != "none")
        assert (traits.hair_color in text) == (traits.hair_style != "bald") or traits.hair_color in (
            traits.clothing_color, traits.background_color)  # fmt: skip
        assert ("freckles" in text) == traits.freckles
        assert ("smiling broadly" in text) == (traits.expression == "broad smile")
        assert ("turned" in text) == (abs(traits.yaw) >= 9.0)
        assert f"{traits.skin_tone} skin" in text
        assert text == text.strip()
        assert not {"man", "woman", "he", "she", "his", "her"} & set(text.replace(",", " ").split())


def test_people_differ() -> None:
    people = [draw_traits(index, 0) for index in range(300)]
    for name, options in (
        ("glasses", GLASSES),
        ("expression", EXPRESSIONS),
        ("facial_hair", FACIAL_HAIR),
        ("hair_color", HAIR_COLORS),
    ):
        assert {getattr(person, name) for person in people} == set(options)
    assert {person.age_band for person in people} == {"young", "adult", "middle-aged", "older"}
    assert {person.skin_tone for person in people} == {"fair", "light", "tan", "brown", "dark"}
    assert np.std([person.yaw for person in people]) > 5.0


def test_pictures_differ(portraits: list[Portrait]) -> None:
    flat = np.stack([cv2.resize(p.image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for p in portraits]).astype(
        float
    )
    distance = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(-1))[np.triu_indices(COUNT, 1)]
    assert distance.min() > 8.0
    shapes = np.stack([p.landmarks for p in portraits])
    assert np.std(shapes, axis=0).mean() > 0.8


@pytest.mark.parametrize("index", [0, 5, 7, 11])
def test_the_same_picture_at_every_size(index: int) -> None:
    large = render(index, 256, 0)
    for size in (64, 128):
        small = render(index, size, 0)
        shrunk = cv2.resize(large.image, (size, size), interpolation=cv2.INTER_AREA).astype(float)
        difference = np.abs(shrunk - small.image)
        assert difference.mean() < 5.0
        scaled = (large.landmarks + 0.5) * (size / 256) - 0.5
        np.testing.assert_allclose(small.landmarks, scaled, atol=1e-3)
        assert small.caption == large.caption
        assert small.traits == large.traits


def test_texture_is_worth_restoring(portraits: list[Portrait]) -> None:
    """A portrait loses something when halved and doubled again: there is detail at the finest scale."""
    loss = []
    for portrait in portraits:
        half = cv2.resize(portrait.image, (SIZE // 2,) * 2, interpolation=cv2.INTER_AREA)
        loss.append(
            np.abs(cv2.resize(half, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(float) - portrait.image).mean()
        )
    assert np.median(loss) > 1.0


def test_smoothstep_against_its_formula() -> None:
    value = np.linspace(-1.0, 2.0, 31)
    np.testing.assert_allclose(smoothstep(0.0, 1.0, value), [3 * t**2 - 2 * t**3 for t in np.clip(value, 0, 1)])
    assert smoothstep(1.0, 0.0, 0.25) == pytest.approx(smoothstep(0.0, 1.0, 0.75))


def test_raster_windows_cut_the_same_pixels() -> None:
    whole = Raster(96)
    outline = np.array([[100.0, 120.0], [300.5, 140.0], [260.0, 333.3]], np.float32)
    part = whole.window(outline, 9.0)
    np.testing.assert_array_equal(part.of(whole.fill(outline)), part.fill(outline))
    assert whole.fill(outline).sum() == pytest.approx(part.fill(outline).sum())


def test_raster_fill_area() -> None:
    square = np.array([[64.0, 64.0], [448.0, 64.0], [448.0, 448.0], [64.0, 448.0]], np.float32)
    assert Raster(128).fill(square).sum() == pytest.approx(96 * 96, rel=0.03)


def test_controls_hold_the_landmarks_first() -> None:
    np.testing.assert_array_equal(control_points()[:68], mean_landmarks())


def test_raster_windows_stay_inside_their_window() -> None:
    outer = Raster(64).box(100.0, 100.0, 300.0, 300.0)
    inner = outer.box(50.0, 120.0, 280.0, 400.0)
    planes = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    np.testing.assert_array_equal(inner.cut(outer.of(planes), outer), inner.of(planes))
    assert inner.cut(outer.of(planes), outer).shape == inner.shape


def test_any_person_can_be_drawn_small() -> None:
    for index in range(60):
        assert render(index, 32, seed=7).image.std() > 5.0
