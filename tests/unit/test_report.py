"""The report and the assessment behind it, on a small set whose answers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from scipy import stats
from skimage.data import astronaut

from prefrestore import configfile
from prefrestore.data.degradation import degrade
from prefrestore.data.pairs import PairSet
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.evaluation import groups, pictures
from prefrestore.evaluation.assessment import Assessment, assess, write_metrics
from prefrestore.evaluation.calibration import calibrate
from prefrestore.evaluation.charts import line_chart, nice_ticks
from prefrestore.evaluation.columns import Column, bicubic_column, fixed_batches, lq_column
from prefrestore.evaluation.page import COST_MARK, VERDICT_MARK, Cost, complete, duration
from prefrestore.evaluation.report import Origin, Source, plain_number, render, signed
from prefrestore.evaluation.significance import Resampling
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.faces.geometry import rescale_points
from prefrestore.rewards.composite import CompositeReward, Part
from prefrestore.rewards.faces import FaceReader
from prefrestore.rewards.structure import StructureReward

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FACES, SIZE = 6, 64
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    """One portrait in six lights, degraded; the last face's geometry is unknown, the first one's name is hostile."""
    whole = np.ascontiguousarray(astronaut()[0:256, 96:352])
    box = face_detector()(whole, 1)[0]
    points = np.array([(p.x, p.y) for p in shape_predictor()(whole, box).parts()], np.float32)
    face = cv2.resize(whole, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    hq = np.stack([np.clip(face * light, 0, 255).astype(np.uint8) for light in np.linspace(0.7, 1.2, FACES)])
    landmarks = np.tile(rescale_points(points, SIZE / 256).astype(np.float32), (FACES, 1, 1))
    landmarks[-1] = np.nan
    ids = (HOSTILE, *(f"face-{k}" for k in range(1, FACES)))
    recipe = recipe_named("pref_restore_moderate")
    records = [draw_record(recipe, SIZE, 0, name) for name in ids]
    lq = np.stack([degrade(image, record) for image, record in zip(hq, records, strict=True)])
    captions = ("a woman with glasses", "a woman without glasses") * (FACES // 2)
    return PairSet(ids, captions, hq, lq[:, None], tuple((record,) for record in records), landmarks)


@pytest.fixture(scope="module")
def found(pairs: PairSet) -> Iterator[Assessment]:
    """The policy lies halfway between base and HQ, with half of base's noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 20, (2, *pairs.hq.shape))
    base = np.clip(pairs.hq + noise, 0, 255).astype(np.uint8)
    policy = np.clip(pairs.hq + noise / 2, 0, 255).astype(np.uint8)
    columns = [
        lq_column(pairs),
        bicubic_column(pairs),
        Column("baseline", pairs.lq[None, :, 0]),
        Column("base", base),
        Column("policy", policy),
        Column("codec", pairs.hq[None]),
    ]
    section = configfile.load(Path(__file__).parents[2] / "presets" / "smoke.yaml").evaluate
    reader = FaceReader(1)
    with CompositeReward([StructureReward()], {"structure": Part(1.0, 0.5, 0.1)}, reader) as reward:
        yield assess(columns, pairs, reward, section)


@pytest.fixture(scope="module")
def html(found: Assessment, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    counts = {"train": 1, "eval": FACES, "rejected": 2, "reasons": {"no face <found>": 2}}
    history = [{"step": k, "loss": 1 / (k + 1), "reward_total": float(k)} for k in range(30)]
    (folder / "history.json").write_text(json.dumps(history))
    return render(found, Origin([Source("pairs", folder)], counts), 4)


def test_the_columns_stand_as_they_were_made(found: Assessment) -> None:
    summary = found.summary
    assert summary["codec"]["psnr"].nan == FACES  # equal images: infinite, counted, not averaged
    assert summary["policy"]["psnr"].mean == pytest.approx(summary["base"]["psnr"].mean + 6, abs=0.5)
    assert summary["policy"]["sample_spread"].mean < 0.6 * summary["base"]["sample_spread"].mean
    assert "sample_spread" not in summary["lq"]
    assert {"psnr", "ssim", "identity_similarity", "landmark_distance", "reward_total", "sharpness"} <= set(
        summary["lq"]
    )


def test_a_face_of_unknown_geometry_is_counted_never_zero(found: Assessment) -> None:
    for name in ("identity_similarity", "landmark_distance", "verification_rank", "frechet_distance"):
        assert (found.summary["policy"][name].n, found.summary["policy"][name].nan) == (FACES - 1, 1)
    assert np.isnan(found.faces.loc[("policy", "face-5"), "identity_similarity"])


def test_the_identical_column_is_not_worse_and_the_halved_noise_better(found: Assessment) -> None:
    outcome = {(row.metric, row.against): row.outcome for row in found.comparisons}
    assert outcome["psnr", "base"] == "better"
    assert outcome["sample_spread", "base"] == "better"
    assert "better in" in found.statements["base"]


def test_the_gain_of_each_seed_is_told_where_there_is_one(found: Assessment) -> None:
    """The mean over seeds is the gain itself; what belongs to all samples together has no gain by seed."""
    rows = {(row.metric, row.against): row for row in found.comparisons}
    for against in ("base", "lq"):
        row = rows["psnr", against]
        assert len(row.seed_gains) == 2
        assert np.mean(row.seed_gains) == pytest.approx(row.gain)
        assert len(set(row.seed_gains)) == 2
    assert np.mean(rows["landmark_distance", "base"].seed_gains) == pytest.approx(
        rows["landmark_distance", "base"].gain
    )
    assert rows["sample_spread", "base"].seed_gains == ()


def test_without_weights_lpips_is_counted_as_missing(found: Assessment) -> None:
    assert (found.summary["policy"]["lpips"].n, found.summary["policy"]["lpips"].nan) == (0, FACES)
    assert "lpips" not in {row.metric for row in found.comparisons}


def test_the_lq_fits_itself_best_of_all_blurred_columns(found: Assessment) -> None:
    """Degrading HQ by its own record gives the LQ exactly, noise included."""
    assert found.summary["codec"]["lq_consistency"].nan == FACES
    assert found.summary["policy"]["lq_consistency"].mean > found.summary["policy"]["psnr"].mean


def test_files(found: Assessment, tmp_path: Path) -> None:
    write_metrics(found, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    write_metrics(found, again)
    names = {path.name for path in tmp_path.glob("*.*")}
    assert {"metrics.json", "per_sample.parquet", "comparisons.json", "metric_table.json", "groups.json"} <= names
    gains = {row["metric"]: row["gain_by_half_interval"] for row in json.loads((tmp_path / "gains.json").read_text())}
    assert gains["PSNR"] > 1  # better: the interval excludes zero
    assert len(json.loads((tmp_path / "reliability.json").read_text())) == 10
    for name in names:
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()
    stored = json.loads((tmp_path / "metrics.json").read_text())["columns"]["policy"]["psnr"]
    assert set(stored) == {"mean", "std", "n", "nan", "low", "high"}


class _Page(HTMLParser):
    """Collects what a page loads and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "img", "input", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "rect", "polyline"):
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_well_formed(html: str) -> None:
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", html)
    assert sum(source.startswith("data:image/png") for source in page.sources) >= 4 * 5


def test_names_of_users_are_escaped(html: str) -> None:
    assert HOSTILE not in html
    assert "alert(&#34;x&#34;)" in html
    assert "no face &lt;found&gt;" in html


def test_the_page_says_what_the_reader_must_know(html: str) -> None:
    for text in (
        "serves as a reward",
        "2",
        "codec ceiling",
        "not measured",
        "Is someone served worse?",
        "By how hard the LQ is",
        "not measured: no weights are named",
        "Best, median and worst",
    ):
        assert text in html
    assert html.count("<svg") > 10


@pytest.fixture(scope="module")
def page_file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole page as people open it: with a verdict and costs."""
    rule = {"rule": "PSNR better than base", "outcome": "failed", "why": "gain -0.1"}
    limit = {"rule": "cost.flops_per_face at most 1", "outcome": "passed", "why": "0.5"}
    verdict = {"passed": False, "sentence": "Not passed: 1 of 2 required rules fail.", "comparisons": [rule]}
    verdict |= {"limits": [limit], "bands": []}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(complete(html, [Cost("align", 7400.0, 9000.0, 0.0, 800.0)], verdict), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(width: int, page_file: Path, chromium: Browser) -> None:
    """Every picture shows, the sliders move, nothing is loaded from elsewhere, nothing sticks out, no error is told."""
    page = chromium.new_page(viewport={"width": width, "height": 844})
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    slider = page.locator(".slider").first
    before = slider.locator(".before").evaluate("image => getComputedStyle(image).clipPath")
    slider.locator("input").fill("90")
    assert slider.locator(".before").evaluate("image => getComputedStyle(image).clipPath") != before
    assert "Not passed" in page.locator("#verdict").inner_text()
    assert "2 rules" in page.locator("#verdict").inner_text()
    outcomes = page.locator("table.paired").first
    assert outcomes.evaluate("table => table.offsetWidth <= table.parentElement.clientWidth")  # no outcome cut off
    assert "2 h 03 min" in page.locator("#cost").inner_text()
    page.close()


def test_paper_shows_what_the_screen_folds_away(page_file: Path, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(page_file.as_uri())
    folded = page.locator("details:not([open]) table").first
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_cases_are_ordered_by_the_metric(found: Assessment) -> None:
    best, median, worst = (case.value for case in pictures.cases(found)["landmark_distance"])
    assert best <= median <= worst
    best, median, worst = (case.value for case in pictures.cases(found)["psnr"])
    assert best >= median >= worst


def test_groups_follow_captions_and_tone(pairs: PairSet) -> None:
    kinds = groups.groups_of(pairs)
    assert {name: int(mask.sum()) for name, mask in kinds["glasses"].items()} == {"with": 3, "without": 3}
    assert "beard" not in kinds
    for masks in kinds.values():
        assert np.stack(list(masks.values())).sum(0).max() <= 1  # no face twice


def test_a_group_stands_apart_by_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 12), rng.normal(0, 3, 30)
    ours = groups.difference(np.append(first, np.nan), second, 0.9)
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert ours.mean == pytest.approx(first.mean() - second.mean())
    assert np.isnan(groups.difference(first[:1], second, 0.9).low)


def test_groups_have_every_metric_and_say_who_is_served_worse(found: Assessment) -> None:
    rows = {(group.kind, group.name): group for group in found.groups}
    with_it, without = rows["glasses", "with"], rows["glasses", "without"]
    assert set(with_it.estimates) == set(found.faces.columns)
    assert with_it.is_of_people
    assert with_it.apart["landmark_distance"].mean == pytest.approx(-without.apart["landmark_distance"].mean)
    gap = with_it.estimates["landmark_distance"].mean - without.estimates["landmark_distance"].mean
    assert with_it.apart["landmark_distance"].mean == pytest.approx(-gap)  # a larger distance is served worse


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man with a beard", True),
        ("no beard", False),
        ("without a beard", False),
        ("a bearded collie", False),
        ("", False),
    ],
)
def test_traits_need_to_be_said(caption: str, expected: bool) -> None:
    assert groups.has_trait(caption, groups.TRAITS["beard"]) is expected


def test_skin_tone_is_the_angle_of_the_cheeks(pairs: PairSet) -> None:
    grey = np.full((SIZE, SIZE, 3), 200, np.uint8)
    grey[..., 2] = 150  # yellowish and light
    assert 0 < groups.skin_tone(grey, pairs.landmarks[0]) < 90
    darker = groups.skin_tone((grey * 0.4).astype(np.uint8), pairs.landmarks[0])
    assert darker < 0
    assert np.isnan(groups.skin_tone(grey, pairs.landmarks[-1]))


def test_uncertainty_finds_where_the_error_is() -> None:
    """Noise only in the right half of every face: spread and error must agree, and the estimate fit unseen faces."""
    rng = np.random.default_rng(1)
    hq = np.full((8, 32, 32, 3), 128, np.uint8)
    noise = rng.normal(0, 1, (4, *hq.shape)) * np.linspace(0, 40, 32)[None, None, None, :, None]
    samples = np.clip(hq + noise, 0, 255).astype(np.uint8)
    result = calibrate(samples, hq, Resampling(0.95, 200, 0))
    assert result is not None
    calibration, reliability = result
    assert reliability.rank_correlation.mean > 0.9
    assert reliability.rank_correlation.n == 4  # judged on the faces that were not fitted
    assert reliability.calibration_error < 0.1 * reliability.mean_error
    assert (np.diff(calibration.error) >= 0).all()
    assert calibrate(samples[:1], hq, Resampling(0.95, 200, 0)) is None


def test_bicubic_enlarges_the_recorded_smallest_size(pairs: PairSet) -> None:
    """A checkerboard of single pixels survives no reduction."""
    board = PairSet(
        pairs.ids,
        pairs.captions,
        pairs.hq,
        np.repeat(
            (np.indices((SIZE, SIZE)).sum(0) % 2 * 255).astype(np.uint8)[None, None, ..., None], 3, axis=-1
        ).repeat(FACES, 0),
        pairs.records,
        pairs.landmarks,
    )
    assert bicubic_column(board).samples.astype(float).std() < 0.8 * board.lq.astype(float).std()


def test_batches_have_one_shape_and_lose_nothing() -> None:
    batches = list(fixed_batches(10, 4))
    assert [len(rows) for rows, _ in batches] == [4, 4, 4]
    assert [row for rows, real in batches for row in rows[:real]] == list(range(10))


def test_an_overlay_is_red_where_the_values_are() -> None:
    image = np.full((4, 4, 3), (0, 0, 255), np.uint8)
    values = np.zeros((4, 4))
    values[0, 0] = 1
    shown = pictures.overlay(image, values)
    assert (np.ptp(shown[1], axis=-1) == 0).all()  # the rest is grey
    assert shown[0, 0, 0] > 200 > shown[0, 0, 2]


def test_a_page_without_marks_stays_as_it_is_and_names_are_escaped() -> None:
    assert (
        complete("<p>old report</p>", [], {"passed": True, "sentence": "x", "comparisons": []}) == "<p>old report</p>"
    )
    page = complete(f"{VERDICT_MARK}{COST_MARK}", [Cost(HOSTILE, 1, 1, 7200, 1)], None)
    assert HOSTILE not in page
    assert "2.00" in page
    assert VERDICT_MARK in page


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (48.2, "48 s"), (99.9, "100 s"), (725, "12 min"), (11100, "3 h 05 min")]
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert (signed(-0.004, 2), signed(0.004, 2), plain_number(-0.004, 2)) == ("0.00", "0.00", "0.00")
    assert (signed(-0.04, 2), signed(0.04, 2), plain_number(-0.04, 2)) == ("\u22120.04", "+0.04", "\u22120.04")


def test_a_face_without_any_error_has_no_rank_correlation() -> None:
    """Neither 0 nor 1: it is counted as not measured."""
    hq = np.random.default_rng(0).integers(60, 190, (6, 32, 32, 3), np.uint8)
    samples = np.stack([hq, hq])
    samples[1, :5] += np.random.default_rng(1).integers(0, 9, (5, 32, 32, 3), np.uint8)
    result = calibrate(samples, hq, Resampling(0.95, 200, 0))
    assert result is not None
    assert (result[1].rank_correlation.n, result[1].rank_correlation.nan) == (2, 1)


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(-3 <= tick <= 17 for tick in nice_ticks(-3, 17))
    assert nice_ticks(2.0, 2.0) == [2.0]


def test_charts_bear_gaps_and_constant_series() -> None:
    assert "nan" not in line_chart([0, 1, 2], [1.0, float("nan"), 1.0], "loss")
    assert line_chart([0, 1], [float("nan")] * 2, "loss") == ""
