"""Pretraining's options: which codes, which span, which targets; parts of a batch; memory savers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from prefrestore.config import ConditionIdsConfig, IdMix, PretrainConfig, TrainCodecConfig
from prefrestore.configfile import load_section
from prefrestore.data.pairs import PairSet
from prefrestore.models.codec import build_codec
from prefrestore.models.integrator import teacher_forced, vocabulary_of
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import CHAT_END
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.training import FitSettings
from prefrestore.sft import pretrain as pretraining
from prefrestore.sft.conditions import corrupt, draw_sources, flatten_pairs, forced_queries
from prefrestore.sft.sequences import build_sequences, code_loss, final_states, queries_of

HQ, GENERATED = IdMix(hq=1.0, generated=0.0, corrupted=0.0), IdMix(hq=0.0, generated=1.0, corrupted=0.0)
TEXTS = ("", "a person with glasses and a beard", "a person")


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return PairSet(
        ids=tuple("abcdef"),
        captions=TEXTS * 2,
        hq=pictures,
        lq=pictures[:, None],
        records=(),
        landmarks=np.full((6, 68, 2), np.nan, np.float32),
    )


def small(repository: Path) -> PretrainConfig:
    config = load_section(repository / "presets" / "smoke.yaml", "pretrain", PretrainConfig)
    steps = config.step1.model_copy(update={"steps": 4, "batch_size": 4})
    return config.model_copy(update={"step1": steps, "step2": steps, "caption_share": 1.0})


def new_pipeline(repository: Path, pairs: PairSet) -> PrefRestorePipeline:
    torch.manual_seed(0)
    section = load_section(repository / "presets" / "smoke.yaml", "train_codec", TrainCodecConfig)
    codec, tokenizer = build_codec(section).eval(), build_tokenizer(section.tokenizer).eval()
    return pretraining.build_pipeline(small(repository), codec, tokenizer, pairs)


@pytest.fixture(scope="module")
def pipeline(repository: Path, pairs: PairSet) -> PrefRestorePipeline:
    return new_pipeline(repository, pairs)


@pytest.fixture(scope="module")
def codes(pipeline: PrefRestorePipeline) -> torch.Tensor:
    size, count = pipeline.image_tokenizer.config.codebook_size, pipeline.image_tokenizer.num_tokens
    return torch.randint(size, (2, len(TEXTS), count), generator=torch.Generator().manual_seed(3))


# --- codes --------------------------------------------------------------------------------------------


def test_codes_go_from_the_first_mix_to_the_last() -> None:
    config = ConditionIdsConfig(start=HQ, end=IdMix(hq=0.0, generated=0.75, corrupted=0.25), corruption=0.5)
    shares = []
    for progress in (0.0, 0.5, 1.0):
        drawn = draw_sources(config, progress, np.random.default_rng(0), 40_000)
        shares.append([(drawn == name).mean() for name in ("hq", "generated", "corrupted")])
    assert np.allclose(shares, [[1, 0, 0], [0.5, 0.375, 0.125], [0, 0.75, 0.25]], atol=0.01)


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match="sum to 1"):
        IdMix(hq=0.5, generated=0.2, corrupted=0.2)


def test_corruption_replaces_the_share_it_says() -> None:
    ids = torch.zeros(200, 50, dtype=torch.long)
    spoilt = corrupt(ids, 0.4, 1000, np.random.default_rng(1))
    assert (spoilt != ids).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert torch.equal(corrupt(ids, 0.0, 1000, np.random.default_rng(1)), ids)


# --- span and targets -----------------------------------------------------------------------------------


def test_exact_span_is_that_of_inference_whatever_the_padding(
    pipeline: PrefRestorePipeline, codes: torch.Tensor
) -> None:
    """The right-padded training sequence and inference's left-padded prompt give the same queries."""
    prompt = pipeline.prompts(codes[0], TEXTS)
    sequences = build_sequences(pipeline, prompt, codes[1])
    ours = queries_of(final_states(pipeline, sequences), sequences, "exact")
    assert torch.allclose(ours, teacher_forced(pipeline.integrator, prompt, codes[1]).queries, atol=1e-5)


def test_published_span_is_shifted_by_closing_tokens_and_padding(
    pipeline: PrefRestorePipeline, codes: torch.Tensor
) -> None:
    prompt = pipeline.prompts(codes[0], TEXTS)
    sequences = build_sequences(pipeline, prompt, codes[1])
    states = final_states(pipeline, sequences)
    exact, shifted = (queries_of(states, sequences, span) for span in ("exact", "last_of_padded"))
    closing = 1 + len(pipeline.text_tokenizer.encode(f"{CHAT_END}\n"))
    longest = int(prompt.mask.sum(1).argmax())
    assert torch.equal(shifted[longest, :-closing], exact[longest, closing:])
    padding = int(prompt.mask.sum(1).max() - prompt.mask[0].sum())
    assert padding > 0
    assert torch.equal(shifted[0, : -closing - padding], exact[0, closing + padding :])


def test_targets_are_the_codes_or_all_but_lq(pipeline: PrefRestorePipeline, codes: torch.Tensor) -> None:
    """Against a loop over tokens, one conversation at a time."""
    prompt = pipeline.prompts(codes[0], TEXTS)
    sequences = build_sequences(pipeline, prompt, codes[1])
    states = final_states(pipeline, sequences)
    first_code, count = vocabulary_of(pipeline.integrator).first_code, codes.shape[2]
    for prompt_loss in (False, True):
        terms = []
        for row in range(len(TEXTS)):
            length, start = int(sequences.mask[row].sum()), int(sequences.first[row])
            for place in range(1, length):
                token = int(sequences.ids[row, place])
                is_code = start < place <= start + count
                if is_code or (prompt_loss and token < first_code):
                    logits = pipeline.integrator.lm_head(states[row, place - 1])
                    terms.append(-functional.log_softmax(logits, -1)[token])
        loss, _ = code_loss(pipeline, states, sequences, prompt_loss)
        assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_given_codes_reach_the_queries(repository: Path, pipeline: PrefRestorePipeline, pairs: PairSet) -> None:
    config = small(repository)
    data = flatten_pairs(pipeline, pairs, 1.0, 0)
    rows = torch.tensor([0, 1])
    own = forced_queries(pipeline, data, rows, data.hq_ids[rows], config)
    changed = data.hq_ids[rows].clone()
    changed[0, -1] = (changed[0, -1] + 1) % pipeline.image_tokenizer.config.codebook_size
    other = forced_queries(pipeline, data, rows, changed, config)
    assert torch.allclose(own[:, :-1], other[:, :-1], atol=1e-6)
    assert not torch.allclose(own[0, -1], other[0, -1], atol=1e-4)
    assert torch.allclose(own[1, -1], other[1, -1], atol=1e-6)


# --- both steps -----------------------------------------------------------------------------------------


def trained(
    repository: Path, pairs: PairSet, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object
) -> tuple[dict[str, torch.Tensor], dict[str, FitSettings]]:
    """Return all trained weights after both steps, and how each was fitted."""
    seen: dict[str, FitSettings] = {}
    fit = pretraining.fit

    def watched(name, modules, step_loss, settings, checkpoints):  # noqa: ANN001, ANN202
        seen[name] = settings
        return fit(name, modules, step_loss, settings, checkpoints)

    monkeypatch.setattr(pretraining, "fit", watched)
    config = small(repository).model_copy(update=changes)
    pipeline = new_pipeline(repository, pairs)
    places = [Checkpoints(name, config, {}, folder) for name in ("one", "two")]
    pretraining.pretrain(config, pipeline, pairs, *places)
    names = ("integrator", "connectors", "generator", "lq_encoder")
    return {f"{n}.{k}": v for n in names for k, v in getattr(pipeline, n).state_dict().items()}, seen


def far_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the relative distance of two sets of weights."""
    first, second = (torch.cat([weights[name].flatten().double() for name in one]) for weights in (one, other))
    return ((first - second).norm() / first.norm()).item()


def test_savers_of_memory_change_nothing_but_rounding(
    repository: Path, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"condition_ids": ConditionIdsConfig(start=HQ, end=HQ, corruption=0.0)}  # decoding would amplify rounding
    plain, _ = trained(repository, pairs, tmp_path / "plain", monkeypatch, **given)
    saved = {**given, "accumulation": 2, "gradient_checkpointing": True}
    saving, how = trained(repository, pairs, tmp_path / "saving", monkeypatch, **saved)
    assert {name: fitted.accumulation for name, fitted in how.items()} == dict.fromkeys(how, 2)
    assert far_apart(plain, saving) < 1e-5
    half, how = trained(repository, pairs, tmp_path / "half", monkeypatch, **given, precision="bfloat16")
    assert all(fitted.bfloat16 for fitted in how.values())
    assert 1e-4 < far_apart(plain, half) < 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"condition_ids": ConditionIdsConfig(start=HQ, end=HQ, corruption=0.0)},
        {"query_span": "last_of_padded"},
        {"prompt_loss": True},
        {"text_only": 1.0},
        {"lq_dropout": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_changes_what_is_learnt(
    repository: Path, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    base = {
        "condition_ids": ConditionIdsConfig(start=GENERATED, end=GENERATED, corruption=0.0),
        "query_span": "exact",
        "prompt_loss": False,
        "text_only": 0.0,
        "lq_dropout": 0.0,
    }
    one, _ = trained(repository, pairs, tmp_path / "one", monkeypatch, **base)
    other, _ = trained(repository, pairs, tmp_path / "other", monkeypatch, **{**base, **change})
    assert far_apart(one, other) > 1e-3


def test_hidden_lq_leaves_the_queries_alone(repository: Path, pairs: PairSet) -> None:
    pipeline = new_pipeline(repository, pairs)
    torch.manual_seed(1)
    torch.nn.init.normal_(pipeline.connectors.placement.weight)
    count, size = pipeline.image_tokenizer.num_tokens + 1, pipeline.integrator.config.hidden_size
    queries, spatial = torch.randn(2, count, size), torch.randn(2, *pipeline.latent_shape)
    text = torch.randn(2, 2 * size)
    with torch.no_grad():
        plain = pipeline.join(queries, spatial, text)
        hidden = pretraining.join_shown(pipeline, (queries, spatial, text), torch.tensor([1.0, 0.0]))
        placed = pipeline.connectors.placed(queries)
    assert torch.allclose(hidden.tokens[0], plain.tokens[0], atol=1e-6)
    assert torch.allclose(hidden.spatial[0], plain.spatial[0], atol=1e-6)
    assert torch.allclose(hidden.tokens[1, :count], plain.tokens[1, :count], atol=1e-6)
    assert not hidden.tokens[1, count:].any()
    assert torch.equal(hidden.spatial[1], placed[1])
    assert placed[1].any()
    assert torch.equal(hidden.text, plain.text)
