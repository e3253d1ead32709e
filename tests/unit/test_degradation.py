"""Recipes, records and their replay."""

from __future__ import annotations

import math
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, uniform

from prefrestore.data.degradation import degrade, degrade_small
from prefrestore.data.kernels import kernel_of
from prefrestore.data.operations import Blur, DegradationRecord, GaussianNoise, Jpeg, PoissonNoise, Resize
from prefrestore.data.recipes import draw_record, recipe_named, recipes
from prefrestore.errors import UserError

NAMES = sorted(recipes())
severities = st.sampled_from(["any", "mild", "moderate", "severe"])


def face(height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    severity=severities,
    height=st.integers(16, 96),
    width=st.integers(16, 96),
    seed=st.integers(0, 2**31),
    sample=st.text(min_size=1, max_size=12),
)
def test_replaying_a_stored_record_gives_the_same_pixels(
    name: str, severity: str, height: int, width: int, seed: int, sample: str
) -> None:
    hq = face(height, width)
    hq.flags.writeable = False
    record = draw_record(recipe_named(name), (height, width), seed, sample, severity)  # type: ignore[arg-type]
    stored = DegradationRecord.from_json(record.to_json())
    assert stored == record
    once = degrade(hq, record)
    assert once.shape == hq.shape
    assert once.dtype == np.uint8
    np.testing.assert_array_equal(degrade(hq.copy(), stored), once)


@given(order=st.permutations(range(8)))
@settings(max_examples=10)
def test_draws_do_not_depend_on_order(order: list[int]) -> None:
    recipe = recipe_named("realesrgan")
    in_order = [draw_record(recipe, 64, 3, f"face-{index}") for index in range(8)]
    shuffled = {index: draw_record(recipe, 64, 3, f"face-{index}") for index in order}
    assert [shuffled[index] for index in range(8)] == in_order
    assert len(set(in_order)) == 8


def test_a_recipe_may_draw_its_severity() -> None:
    recipe = recipe_named("pref_restore_levels")
    records = [draw_record(recipe, 128, 3, f"face-{index}") for index in range(400)]
    count = Counter(record.severity for record in records)
    assert set(count) == {"mild", "moderate", "severe", "any"}
    assert min(count.values()) > 70
    for record in records[:40]:
        level = recipe_named("pref_restore" if record.severity == "any" else f"pref_restore_{record.severity}")
        bounds = level.bounds((128, 128), record.severity)
        noise = next(operation for operation in record.operations if isinstance(operation, GaussianNoise))
        assert bounds["gaussian_noise.sigma"][0] <= noise.sigma <= bounds["gaussian_noise.sigma"][1]
    mild = draw_record(recipe, 128, 3, "face-0", "mild")
    assert mild.severity == "mild"


JOBS = [(name, size, f"face-{number}") for number, name in enumerate(NAMES) for size in (40, 64)]


@given(order=st.permutations(range(len(JOBS))))
@settings(max_examples=8)
def test_pixels_do_not_depend_on_what_was_done_before(order: list[int]) -> None:
    """Images of other sizes and recipes in between change nothing, though buffers are used again."""

    def made(place: int) -> bytes:
        name, size, sample = JOBS[place]
        return degrade(face(size, size), draw_record(recipe_named(name), size, 5, sample)).tobytes()

    alone = [made(place) for place in range(len(JOBS))]
    shuffled = {place: made(place) for place in order}
    assert [shuffled[place] for place in range(len(JOBS))] == alone


def test_draws_fill_their_ranges_evenly() -> None:
    recipe = recipe_named("pref_restore")
    records = [draw_record(recipe, 512, 0, str(number)) for number in range(1500)]
    columns = {
        "sigma": ([record.operations[0].sigma_x for record in records], (1, 15)),  # type: ignore[union-attr]
        "factor": ([512 / record.operations[1].width for record in records], (1, 30)),  # type: ignore[union-attr]
        "noise": ([record.operations[2].sigma for record in records], (0, 20)),  # type: ignore[union-attr]
        "quality": ([record.operations[3].quality + 0.5 for record in records], (30, 90)),  # type: ignore[union-attr]
    }
    for name, (values, (low, high)) in columns.items():
        assert kstest(values, uniform(low, high - low).cdf).statistic < 0.07, name  # whole sides and qualities jump
    kinds = Counter(record.operations[0].kernel for record in records)  # type: ignore[union-attr]
    assert kinds["iso"] == pytest.approx(750, abs=80)


PUBLISHED = {  # option files named in recipes.yaml: blur, side after at 512 px, noise, JPEG
    "gfpgan": ((0.1, 10), (64, 640), (0, 20), (60, 100)),
    "codeformer": ((1, 15), (17, 128), (0, 20), (30, 80)),
    "lrpo": ((0.1, 12), (42, 512), (0, 15), (30, 100)),
    "realesrgan": ((0.2, 3), (38, 768), (1, 30), (30, 95)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_ranges_are_the_published_ones(name: str) -> None:
    bounds = recipe_named(name).bounds((512, 512))
    sigma, side, noise, quality = PUBLISHED[name]
    assert bounds["blur.sigma_x"] == sigma
    assert bounds["resize.width"] == (side[0], max(side[1], 512))  # the last resize restores 512
    assert bounds["gaussian_noise.sigma"] == noise
    assert bounds["jpeg.quality"] == quality
    if name == "gfpgan":
        assert bounds["colour_shift.red"] == (-20, 20)
        assert bounds["colour_jitter.hue"] == (-0.1, 0.1)
    if name == "realesrgan":
        assert bounds["poisson_noise.scale"] == (0.05, 3)
        assert bounds["blur.beta"] == (0.5, 4)
        assert bounds["sinc.cutoff"] == pytest.approx((math.pi / 5, math.pi))


def test_probabilities_are_the_published_ones() -> None:
    """Real-ESRGAN: second blur 0.8, sinc 0.1 of blurs, grey noise 0.4; GFPGAN: jitters 0.3."""
    drawn = [draw_record(recipe_named("realesrgan"), 512, 0, str(number)).operations for number in range(1200)]
    first = [operations[0].op for operations in drawn]
    assert first.count("sinc") / len(drawn) == pytest.approx(0.1, abs=0.03)
    second = [operations[4].op in {"blur", "sinc"} for operations in drawn]
    assert sum(second) / len(drawn) == pytest.approx(0.8, abs=0.04)
    noises = [one for operations in drawn for one in operations if isinstance(one, GaussianNoise | PoissonNoise)]
    assert len(noises) == 2 * len(drawn)
    assert sum(noise.grey for noise in noises) / len(noises) == pytest.approx(0.4, abs=0.04)
    assert sum(isinstance(noise, PoissonNoise) for noise in noises) / len(noises) == pytest.approx(0.5, abs=0.04)
    faces = [draw_record(recipe_named("gfpgan"), 512, 0, str(number)).operations for number in range(1200)]
    for kind in ("colour_shift", "colour_jitter"):
        assert sum(any(one.op == kind for one in row) for row in faces) / 1200 == pytest.approx(0.3, abs=0.05)


@settings(max_examples=120)
@given(
    name=st.sampled_from(NAMES),
    severity=severities,
    height=st.integers(16, 1100),
    width=st.integers(16, 1100),
    sample=st.integers(0, 10**6),
)
def test_every_drawn_number_lies_in_its_stated_range(
    name: str, severity: str, height: int, width: int, sample: int
) -> None:
    recipe = recipe_named(name)
    bounds = recipe.bounds((height, width), severity)  # type: ignore[arg-type]
    record = draw_record(recipe, (height, width), 0, str(sample), severity)  # type: ignore[arg-type]
    for numbers in record.parameters():
        for key, value in numbers.items():
            low, high = bounds[key]
            assert low - 1e-9 <= value <= high + 1e-9, key


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512, 1024])
def test_size_rule(size: int) -> None:
    bounds = recipe_named("pref_restore").bounds((size, size))
    ratio = size / 512
    assert bounds["resize.width"] == (17, size)  # floor(512 / 30), whatever the size
    assert bounds["blur.sigma_x"] == pytest.approx((ratio, 15 * ratio))
    assert bounds["gaussian_noise.sigma"] == (0, 20)
    assert bounds["jpeg.quality"] == (30, 90)
    severe = recipe_named("pref_restore_severe").bounds((size, size))
    assert severe["resize.width"][0] == min(size, 34)


def test_size_rule_of_the_other_steps() -> None:
    """Lengths go with the size; LQ images keep their pixels, where the image has as many; chances stay."""
    motion = recipe_named("codeformer_motion").bounds((128, 128))
    assert motion["motion.length"] == pytest.approx((1.25, 10))
    assert motion["blur.size"] == (11, 11)  # radius 20 / 4
    second_order = {size: recipe_named("realesrgan").bounds((size, size)) for size in (64, 256, 512)}
    assert {size: bounds["resize.width"][0] for size, bounds in second_order.items()} == {64: 38, 256: 38, 512: 38}
    assert second_order[256]["sinc.cutoff"] == pytest.approx((2 * math.pi / 5, math.pi))
    assert second_order[256]["blur.sigma_x"] == pytest.approx((0.1, 1.5))
    assert second_order[256]["poisson_noise.scale"] == (0.05, 3)


def test_robustness_levels_are_the_published_ones() -> None:
    published = {
        "mild": ((1, 5.67), (0, 6.67), (70, 90)),
        "moderate": ((5.67, 10.33), (6.67, 13.33), (50, 70)),
        "severe": ((10.33, 15), (13.33, 20), (30, 50)),
    }
    for level, (sigma, noise, quality) in published.items():
        bounds = recipe_named(f"pref_restore_{level}").bounds((512, 512))
        assert bounds["blur.sigma_x"] == pytest.approx(sigma, abs=0.01)
        assert bounds["gaussian_noise.sigma"] == pytest.approx(noise, abs=0.01)
        assert bounds["jpeg.quality"] == pytest.approx(quality, abs=1)
        smallest, full = bounds["resize.width"]
        assert smallest == math.floor(512 / sigma[1])
        assert full == 512


def reference_chain(hq: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """The published steps, written plainly: float in [0, 1], dense kernel, JPEG of 255 x, truncation."""
    image = hq[:, :, ::-1].astype(np.float32) / 255
    blur, small, noise, jpeg, full = record.operations
    assert isinstance(blur, Blur)
    assert isinstance(small, Resize)
    assert isinstance(noise, GaussianNoise)
    assert isinstance(jpeg, Jpeg)
    assert isinstance(full, Resize)
    image = cv2.filter2D(image, -1, kernel_of(blur))
    image = cv2.resize(image, (small.width, small.height), interpolation=cv2.INTER_LINEAR)
    field = np.random.Generator(np.random.PCG64(noise.seed)).standard_normal(image.shape, np.float32)
    image = np.clip(image + field[:, :, ::-1] * noise.sigma / 255, 0, 1)
    _, data = cv2.imencode(".jpg", np.rint(image * 255), [cv2.IMWRITE_JPEG_QUALITY, jpeg.quality])
    image = np.float32(cv2.imdecode(data, cv2.IMREAD_COLOR)) / 255
    image = cv2.resize(image, (full.width, full.height), interpolation=cv2.INTER_LINEAR)
    return np.clip(image * 255, 0, 255).astype(np.uint8)[:, :, ::-1]


@pytest.mark.parametrize("sample", range(6))
def test_pref_restore_is_the_published_chain(sample: int) -> None:
    hq = face(256, 256)
    record = draw_record(recipe_named("pref_restore"), 256, 1, str(sample))
    difference = np.abs(degrade(hq, record).astype(int) - reference_chain(hq, record))
    assert np.median(difference) == 0
    assert difference.mean() < 0.25  # a level that rounds the other way before JPEG moves a block a little
    assert (difference > 4).mean() < 0.01


def test_small_image_is_the_one_before_the_last_resize() -> None:
    hq = face(64, 64)
    record = draw_record(recipe_named("codeformer"), 64, 0, "x")
    small = degrade_small(hq, record)
    target = next(operation for operation in record.operations if isinstance(operation, Resize))
    assert small.shape == (target.height, target.width, 3)
    restored = cv2.resize(small.astype(np.float32), (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(np.rint(restored).astype(np.uint8), degrade(hq, record))


@pytest.mark.parametrize("name", ["pref_restore", "gfpgan", "codeformer", "lrpo", "realesrgan"])
def test_severe_is_worse_than_mild(name: str) -> None:
    hq = face(256, 256)

    def error(level: str) -> float:
        records = [draw_record(recipe_named(name), 256, 0, str(index), level) for index in range(12)]  # type: ignore[arg-type]
        return float(np.mean([np.abs(degrade(hq, record).astype(int) - hq).mean() for record in records]))

    assert error("mild") < error("severe")


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="recipe 'blurry' is unknown: choose one of pref_restore"):
        recipe_named("blurry")
    record = draw_record(recipe_named("lrpo"), 64, 0, "a")
    with pytest.raises(ValueError, match="its record is for 64 x 64"):
        degrade(face(32, 32), record)
    with pytest.raises(ValueError, match="image is float32, expected uint8"):
        degrade(face(64, 64).astype(np.float32), record)


def test_every_recipe_cites_its_source() -> None:
    assert {"pref_restore", "gfpgan", "codeformer", "lrpo", "realesrgan"} <= set(NAMES)
    assert all("arXiv" in recipe.source for recipe in recipes().values())
