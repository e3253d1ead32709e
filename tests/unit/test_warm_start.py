"""Pretraining that goes on from an earlier base."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from prefrestore.config import PretrainConfig, TrainCodecConfig
from prefrestore.configfile import load_section
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.models.codec import build_codec
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.sft.pretrain import build_pipeline
from prefrestore.sft.warm_start import TRAINED


def _pairs(captions: tuple[str, ...]) -> PairSet:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return PairSet(("a", "b"), captions, pictures, pictures[:, None], (), np.full((2, 68, 2), np.nan, np.float32))


def _build(repository: Path, captions: tuple[str, ...], codec_seed: int = 0, **changes: object) -> PrefRestorePipeline:
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    section = load_section(repository / "presets" / "smoke.yaml", "train_codec", TrainCodecConfig)
    torch.manual_seed(codec_seed)
    codec, tokenizer = build_codec(section).eval(), build_tokenizer(section.tokenizer).eval()
    return build_pipeline(config.model_copy(update=changes), codec, tokenizer, _pairs(captions))


@pytest.fixture(scope="module")
def base(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base without text modulation and the path of the queries, all of whose weights are its own."""
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    plain = config.generator.model_copy(update={"text_modulation": False, "query_path": False})
    pipeline = _build(repository, ("a beard", "glasses"), generator=plain, seed=99)
    folder = tmp_path_factory.mktemp("earlier") / "base"
    pipeline.save_pretrained(folder)
    return folder


def test_a_base_goes_on_where_it_was_and_what_is_new_starts_at_zero(repository: Path, base: Path) -> None:
    earlier = PrefRestorePipeline.from_pretrained(base)
    pipeline = _build(repository, ("other words", "than before"), start=str(base))

    assert pipeline.text_tokenizer.get_vocab() == earlier.text_tokenizer.get_vocab()
    for name in TRAINED:
        own, given = getattr(pipeline, name).state_dict(), getattr(earlier, name).state_dict()
        assert all(torch.equal(own[key], given[key]) for key in given)
    assert pipeline.generator.config.text_size > 0
    lq = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    restored = [model.restore(lq, ["a beard", ""], seeds=[1, 2]) for model in (pipeline, earlier)]
    assert torch.allclose(restored[0], restored[1], atol=1e-5)


def test_another_codec_is_refused_by_name(repository: Path, base: Path) -> None:
    with pytest.raises(UserError, match=r"trained on another codec: set train_codec\.weights to .*/codec"):
        _build(repository, ("a beard", "glasses"), codec_seed=1, start=str(base))


def test_other_sizes_are_refused_by_name(repository: Path, base: Path) -> None:
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    wider = config.integrator.model_copy(update={"ffn_size": 2 * config.integrator.ffn_size})
    with pytest.raises(UserError, match=r"integrator\..*mlp.*has shape .*: give pretrain the sizes that it has"):
        _build(repository, ("a beard", "glasses"), integrator=wider, start=str(base))


def test_a_folder_without_a_base_is_refused(repository: Path, base: Path, tmp_path: Path) -> None:
    half = shutil.copytree(base, tmp_path / "half")
    shutil.rmtree(half / "generator")
    with pytest.raises(UserError, match="generator is missing"):
        _build(repository, ("a beard", "glasses"), start=str(half))


def test_there_is_one_beginning(repository: Path) -> None:
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    with pytest.raises(ValidationError, match="set one of them to null"):
        PretrainConfig.model_validate(config.model_dump() | {"weights": "published", "start": "base"})
