"""The U-Net that corrects LQ images before the codec's encoder sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prefrestore import configfile
from prefrestore.config import PretrainConfig, TrainCodecConfig
from prefrestore.configfile import load_section
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.models.codec import build_codec
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.sft import pretrain as pretraining
from prefrestore.sft.conditions import flatten_pairs

WIDTH = 8


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    random = np.random.default_rng(0)
    hq = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    lq = np.stack([hq // 2, hq // 3], 1)
    return PairSet(tuple("abcd"), ("",) * 4, hq, lq, (), np.full((4, 68, 2), np.nan, np.float32))


def build(repository: Path, pairs: PairSet, **changes: object) -> tuple[PretrainConfig, PrefRestorePipeline]:
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    steps = config.step1.model_copy(update={"steps": 3, "batch_size": 4})
    config = config.model_copy(update={"step1": steps, "step2": steps, "lq_corrector": WIDTH, **changes})
    section = load_section(repository / "presets" / "smoke.yaml", "train_codec", TrainCodecConfig)
    torch.manual_seed(0)
    codec, tokenizer = build_codec(section).eval(), build_tokenizer(section.tokenizer).eval()
    return config, pretraining.build_pipeline(config, codec, tokenizer, pairs)


def test_it_starts_as_the_codecs_own_encoder(repository: Path, pairs: PairSet) -> None:
    _, pipeline = build(repository, pairs)
    lq = torch.rand(2, 3, 32, 32)
    assert torch.equal(pipeline.lq_encoder.corrected(lq), lq)
    assert torch.equal(pipeline.lq_encoder(lq), LqEncoder.from_codec(pipeline.codec)(lq))
    assert torch.allclose(pipeline.lq_encoder(lq), pipeline.encode(lq), atol=1e-5)


def test_training_moves_the_corrector_and_leaves_the_encoder(repository: Path, pairs: PairSet, tmp_path: Path) -> None:
    config, pipeline = build(repository, pairs)
    before = {name: value.clone() for name, value in pipeline.lq_encoder.state_dict().items()}
    places = [Checkpoints(name, config, {}, tmp_path) for name in ("one", "two")]
    trained = pretraining.pretrain(config, pipeline, pairs, *places)
    changed = {
        name.split(".")[0] for name, value in pipeline.lq_encoder.state_dict().items() if not value.equal(before[name])
    }
    assert changed == {"corrector"}
    assert {"flow", "lq_encoder"} <= trained.step2[-1].keys()


def test_its_loss_is_that_of_the_yardstick_against_the_same_rows_hq(repository: Path, pairs: PairSet) -> None:
    """Rows are (face, variant), odd variants mirrored: written out by hand."""
    _, pipeline = build(repository, pairs)
    data = flatten_pairs(pipeline, pairs, 1.0, 0)
    rows = torch.tensor([2, 5])  # face 1 as it is, face 2 mirrored
    hq = np.stack([pairs.hq[1], pairs.hq[2][:, ::-1]])
    assert np.array_equal(data.hq_images(rows.numpy()), hq)
    _, loss = pretraining._lq_latent(pipeline, data, rows, data.latents[rows])
    lq = np.stack([pairs.lq[1, 0], pairs.lq[2, 1][:, ::-1]])
    error = (lq.astype(np.float64) - hq) / 255
    assert loss.item() == pytest.approx(np.abs(error).mean() + 2 * (error**2).mean(), rel=1e-5)


def test_it_is_saved_and_loaded(repository: Path, pairs: PairSet, tmp_path: Path) -> None:
    _, pipeline = build(repository, pairs)
    torch.nn.init.normal_(pipeline.lq_encoder.corrector.unet.conv_out.weight, std=0.02)
    pipeline.save_pretrained(tmp_path / "base")
    again = PrefRestorePipeline.from_pretrained(tmp_path / "base")
    lq = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.lq_encoder(lq), pipeline.lq_encoder(lq))
    assert not torch.equal(again.lq_encoder(lq), LqEncoder.from_codec(pipeline.codec)(lq))


def test_a_base_without_one_goes_on_with_one(repository: Path, pairs: PairSet, tmp_path: Path) -> None:
    """All else is the base's; its encoder, which was trained on LQ images, is not taken over."""
    _, earlier = build(repository, pairs, lq_corrector=0, seed=99)
    torch.nn.init.normal_(next(earlier.lq_encoder.encoder.parameters()))
    earlier.save_pretrained(tmp_path / "base")
    _, pipeline = build(repository, pairs, start=str(tmp_path / "base"))
    own, given = pipeline.generator.state_dict(), earlier.generator.state_dict()
    assert all(own[name].equal(given[name]) for name in given)
    lq = torch.rand(1, 3, 32, 32)
    assert torch.equal(pipeline.lq_encoder(lq), LqEncoder.from_codec(pipeline.codec)(lq))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lq_corrector": 12}, "lq_corrector 12: give a multiple of 8"),
        ({"lq_corrector": 8, "weights": "somewhere"}, "lq_corrector: published weights have none"),
    ],
)
def test_what_cannot_be_is_refused(repository: Path, changes: dict[str, object], message: str) -> None:
    section = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig).model_dump()
    with pytest.raises(UserError, match=message):
        configfile.parse(PretrainConfig, {**section, **changes}, "pretrain")
