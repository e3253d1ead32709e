"""Samples of one face: a text is heeded more than pretraining's guidance says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from prefrestore.data.pairs import to_tensor, to_uint8
from prefrestore.evaluation.restorer import COMPARED_STEPS, Drawing, draw
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import TEXT_GUIDANCE, TEXT_STEPS
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.shipped import shipped_address
from prefrestore.runtime.seeding import derive

PLAIN = Drawing(0, None, 0)
FACE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipeline() -> PrefRestorePipeline:
    return load(locate(resolve(shipped_address(), "sqlite:///unused.db")))


@pytest.mark.parametrize("text", ["", "a man with glasses"])
@torch.no_grad()
def test_a_text_is_guided_and_no_text_is_not(pipeline: PrefRestorePipeline, text: str) -> None:
    used = (TEXT_STEPS, TEXT_GUIDANCE) if text else (1, 1.0)
    drawn = draw(pipeline, FACE, replace(PLAIN, text=text)).restoration
    condition = pipeline.encode_condition(to_tensor(FACE[None]), [text])
    noise = pipeline.initial_noise([derive("restore", 0, 0)])
    expected = pipeline.decode(pipeline.sample(condition, noise, *used))
    assert np.abs(drawn.astype(int) - to_uint8(expected)[0]).max() <= 1
    assert (pipeline.sampler_steps, pipeline.guidance) == (1, 1)


def test_asked_steps_are_taken_with_a_text_too(pipeline: PrefRestorePipeline) -> None:
    one, two, more = (
        draw(pipeline, FACE, Drawing(0, steps, 0, "a beard")).restoration for steps in (1, TEXT_STEPS, None)
    )
    assert (two == more).all()
    assert (one != two).any()


def test_all_ways_to_a_restoration_heed_a_text_alike(pipeline: PrefRestorePipeline) -> None:
    seed = derive("restore", 0, 0)
    drawn = draw(pipeline, FACE, replace(PLAIN, text="a beard")).restoration
    told: list[int] = []
    called = pipeline(Image.fromarray(FACE), "a beard", seed, callback=lambda step: told.append(step.num_steps))
    assert (np.asarray(called.images[0]) == drawn).all()
    assert told == [TEXT_STEPS] * TEXT_STEPS


def test_a_text_changes_the_picture(pipeline: PrefRestorePipeline) -> None:
    with_text, without = (draw(pipeline, FACE, replace(PLAIN, text=text)).restoration for text in ("glasses", ""))
    assert (with_text != without).any()


def test_samples_that_are_compared_take_more_steps_than_the_restoration(pipeline: PrefRestorePipeline) -> None:
    plain, both = (draw(pipeline, FACE, replace(PLAIN, samples=samples)) for samples in (0, 2))
    assert len(plain.samples) == 0
    assert (both.restoration == plain.restoration).all()  # asking where it guessed changes nothing
    for number, sample in enumerate(both.samples):
        noise = pipeline.initial_noise([derive("restore", 0, number)])
        condition = pipeline.encode_condition(to_tensor(FACE[None]), [""])
        expected = to_uint8(pipeline.decode(pipeline.sample(condition, noise, COMPARED_STEPS)))[0]
        assert np.abs(sample.astype(int) - expected).max() <= 1
    asked = draw(pipeline, FACE, Drawing(2, 2, 0))
    assert (asked.samples[0] == asked.restoration).all()
