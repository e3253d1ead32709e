"""A condition that is computed once says exactly what it says when it is computed every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prefrestore import configfile
from prefrestore.config import IntegratorConfig, LoraConfig, PretrainConfig
from prefrestore.data.pairs import PairSet, to_uint8
from prefrestore.diffusion.sampler import Sampler
from prefrestore.errors import UserError
from prefrestore.evaluation.columns import Sampling, sampled_column
from prefrestore.models.adapters import (
    SPATIAL_PATH,
    Role,
    add_roles,
    policy_parameters,
    role_tensors,
    set_role,
    using_role,
)
from prefrestore.models.codec import build_codec
from prefrestore.models.condition import Condition, grouped
from prefrestore.models.decoding import positions
from prefrestore.models.generator import Generator
from prefrestore.models.integrator import build_integrator, generate
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import Prompt, Vocabulary
from prefrestore.runtime.seeding import derive

TOKENS, CAPTION, TEXT = 7, 24, 5
ROLES: tuple[Role, ...] = ("policy", "old", "ema", "ref")


@pytest.fixture(scope="module")
def pipeline() -> PrefRestorePipeline:
    """A restorer of a generator alone, every weight of it random and every role another one."""
    torch.manual_seed(0)
    generator = Generator(4, 8, 2, 3, 4, 8, 2, 16, CAPTION, text_size=TEXT)
    with torch.no_grad():
        for value in generator.parameters():
            value.add_(0.05 * torch.randn_like(value))
    parts = ("codec", "lq_encoder", "image_tokenizer", "text_tokenizer", "integrator", "connectors")
    pipeline = PrefRestorePipeline(**dict.fromkeys(parts), generator=generator.eval())
    add_roles(pipeline, LoraConfig(rank=2, alpha=4), seed=0)
    for role in ("policy", "old", "ema"):
        weights = role_tensors(pipeline, role)
        set_role(pipeline, role, {name: 0.5 * torch.randn_like(value) for name, value in weights.items()})
    return pipeline


@pytest.fixture
def condition() -> Condition:
    draw = torch.Generator().manual_seed(1)
    shapes = ((3, TOKENS, CAPTION), (3, 4, 8, 8), (3, TEXT))
    return Condition(*(torch.randn(shape, generator=draw) for shape in shapes))


def noisy(count: int) -> tuple[Tensor, Tensor]:
    """Noisy latents and a noise level of its own for each."""
    draw = torch.Generator().manual_seed(2)
    return torch.randn(count, 4, 8, 8, generator=draw), torch.linspace(0.1, 1, count)


@contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """Record the batch size of every call of a module."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("role", ROLES)
@torch.no_grad()
def test_every_role_reads_the_shared_projection_exactly(
    pipeline: PrefRestorePipeline, condition: Condition, role: Role
) -> None:
    x_t, sigma = noisy(3)
    projected = pipeline.generator.project(condition)
    with using_role(pipeline, role):
        plain = pipeline.velocity(x_t, sigma, condition)
        assert torch.equal(pipeline.velocity(x_t, sigma, pipeline.prepare(projected)), plain)
    if role != "policy":
        assert not torch.allclose(pipeline.velocity(x_t, sigma, condition), plain, atol=1e-3)


@torch.no_grad()
def test_samples_of_a_face_share_its_condition(pipeline: PrefRestorePipeline, condition: Condition) -> None:
    x_t, sigma = noisy(12)
    rows = [row for row in range(3) for _ in range(4)]
    plain = pipeline.velocity(x_t, sigma, condition.select(rows))
    assert torch.allclose(pipeline.velocity(x_t, sigma, pipeline.prepare(condition)), plain, atol=1e-6)
    assert torch.allclose(pipeline.velocity(x_t, sigma, condition), plain, atol=1e-6)
    with pytest.raises(ValueError, match="11 samples cannot share 3 conditions"):
        pipeline.velocity(x_t[:11], sigma[:11], pipeline.prepare(condition))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_keys_and_values_are_trained_through_the_projection(
    pipeline: PrefRestorePipeline, condition: Condition, checkpointing: bool
) -> None:
    x_t, sigma = noisy(6)
    projected = pipeline.generator.project(condition)
    parameters = policy_parameters(pipeline)

    def gradients(velocity: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(velocity.square().sum(), parameters))

    plain = gradients(pipeline.velocity(x_t, sigma, condition.select([0, 0, 1, 1, 2, 2])))
    transformer = pipeline.generator.transformer
    (transformer.enable_gradient_checkpointing if checkpointing else transformer.disable_gradient_checkpointing)()
    cached = gradients(pipeline.velocity(x_t, sigma, pipeline.prepare(projected)))
    transformer.disable_gradient_checkpointing()
    assert len(plain) == (3 * 8 + len(SPATIAL_PATH)) * 2
    for one, other in zip(plain, cached, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@torch.no_grad()
def test_one_empty_token_is_the_dropped_condition(pipeline: PrefRestorePipeline, condition: Condition) -> None:
    """Guidance extrapolates from what condition dropout trains: tokens and text zero, the spatial path as it is."""
    x_t, sigma = noisy(6)
    dropped = Condition(torch.zeros_like(condition.tokens), condition.spatial, torch.zeros_like(condition.text))
    rows = [0, 0, 1, 1, 2, 2]
    null = pipeline.velocity(x_t, sigma, dropped.select(rows))
    given_all = pipeline.velocity(x_t, sigma, condition.select(rows))
    guided = pipeline.velocity_function(condition, guidance=2.5)(x_t, sigma)
    assert torch.allclose(guided, null + 2.5 * (given_all - null), atol=1e-5)
    kept = torch.tensor([1.0, 0.0, 1.0])[:, None]
    partly = Condition(condition.tokens * kept[..., None], condition.spatial, condition.text * kept)
    cached = pipeline.velocity(x_t, sigma, pipeline.prepare(partly))
    assert torch.allclose(cached, torch.cat([given_all[:2], null[2:4], given_all[4:]]), atol=1e-6)


def test_a_condition_is_projected_once_and_null_only_where_it_counts(
    pipeline: PrefRestorePipeline, condition: Condition
) -> None:
    """Twelve samples of three faces over five steps: one projection of three rows."""
    noise, transformer = noisy(12)[0], pipeline.generator.transformer
    for guidance, projected, calls in ((1.0, [3], 5), (2.0, [3, 1], 10)):
        with (
            rows_through(transformer.caption_projection) as captions,
            rows_through(transformer.transformer_blocks[0].attn2.to_k.base_layer) as keys,
            rows_through(transformer.proj_out) as forwards,
        ):
            pipeline.sample(condition, noise, 5, guidance)
        assert captions == keys == projected
        assert forwards == [12] * calls


@torch.no_grad()
def test_text_matters_to_its_own_samples_alone(pipeline: PrefRestorePipeline, condition: Condition) -> None:
    x_t, sigma = noisy(6)
    told = pipeline.velocity(x_t, sigma, pipeline.prepare(condition))
    other = replace(condition, text=condition.text * torch.tensor([1.0, 0.0, -1.0])[:, None])
    changed = (pipeline.velocity(x_t, sigma, pipeline.prepare(other)) - told).abs().amax((1, 2, 3))
    assert changed[:2].max() < 1e-6
    assert changed[2:].min() > 1e-3
    untold = pipeline.generator(x_t, sigma, pipeline.prepare(condition).keys_values, condition.spatial)
    none = pipeline.velocity(x_t, sigma, pipeline.prepare(replace(condition, text=torch.zeros(3, TEXT))))
    assert torch.allclose(untold, none, atol=1e-6)


def test_sampling_repeats_to_the_byte_and_hardly_knows_its_batch(
    pipeline: PrefRestorePipeline, condition: Condition
) -> None:
    noise = noisy(6)[0]
    whole = pipeline.sample(condition, noise, 4)
    assert torch.equal(pipeline.sample(condition, noise, 4), whole)
    for row in range(6):
        alone = pipeline.sample(condition.select([row // 2]), noise[row : row + 1], 4)
        assert torch.allclose(alone, whole[row : row + 1], atol=1e-5)


def test_sampling_equals_the_plain_loop(pipeline: PrefRestorePipeline, condition: Condition) -> None:
    """Whole trajectories agree with those of a generator that sees tokens at every step."""
    noise = noisy(6)[0]
    repeated = condition.select([0, 0, 1, 1, 2, 2])
    plain = Sampler(8)(lambda x_t, sigma: pipeline.velocity(x_t, sigma, repeated), noise)
    assert torch.allclose(pipeline.sample(condition, noise, 8), plain, atol=1e-5)


def test_guidance_without_condition_dropout_is_a_users_error(repository: Path) -> None:
    plain = configfile.read_yaml(repository / "presets" / "smoke.yaml")["pretrain"]
    dropless = {**plain, "step2": {**plain["step2"], "condition_dropout": 0.0}}
    assert configfile.parse(PretrainConfig, dropless, "pretrain").guidance == 1
    with pytest.raises(UserError, match="guidance 1.5 needs samples without condition"):
        configfile.parse(PretrainConfig, {**dropless, "guidance": 1.5}, "pretrain")


def test_weights_keep_the_names_of_diffusers() -> None:
    plain = SanaTransformer2DModel(
        in_channels=8,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=CAPTION,
        sample_size=8,
        patch_size=2,
        qk_norm="rms_norm_across_heads",
    )
    ours = Generator(4, 8, 2, 3, 4, 8, 2, 16, CAPTION).transformer.state_dict()
    assert {name for name in ours if not name.startswith("gain.")} == set(plain.state_dict())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24))
def test_rows_are_grouped_without_loss(rows: list[int]) -> None:
    kept, repeats = grouped(rows)
    assert [row for row in kept for _ in range(repeats)] == rows
    assert not any(_regroups(rows, more) for more in range(repeats + 1, len(rows) + 1))


def _regroups(rows: Sequence[int], repeats: int) -> bool:
    return len(rows) % repeats == 0 and [row for row in rows[::repeats] for _ in range(repeats)] == list(rows)


@torch.no_grad()
def test_static_decoding_equals_full_passes_whatever_the_padding() -> None:
    """Against the plain way: the whole sequence again for every id, the whole head, illegal ids struck out."""
    torch.manual_seed(3)
    vocabulary = Vocabulary(30, 40)
    sizes = {"hidden_size": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_size": 48}
    integrator = build_integrator(IntegratorConfig(**sizes, text_vocabulary=30, text_first=False), vocabulary).eval()
    for value in integrator.parameters():
        value.add_(0.2 * torch.randn_like(value))
    ids = torch.randint(30, (3, 9))
    mask = torch.tensor([[0] * pad + [1] * (9 - pad) for pad in (0, 4, 1)])
    decoded = generate(integrator, Prompt(ids, mask, torch.zeros_like(mask)), 12)
    for _ in range(12):
        output = integrator(input_ids=ids, attention_mask=mask, position_ids=positions(mask), output_hidden_states=True)
        logits = output.logits[:, -1]
        logits[:, : vocabulary.first_code] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
        mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
    assert torch.equal(decoded.ids, ids[:, 9:] - vocabulary.first_code)
    assert len(decoded.ids.unique()) > 3
    states = integrator.model(ids, attention_mask=mask, position_ids=positions(mask)).last_hidden_state
    assert torch.allclose(decoded.queries, states[:, 8:], atol=1e-5)
    alone = generate(integrator, Prompt(ids[1:2, 4:9], mask[1:2, 4:9], torch.zeros_like(mask[1:2, 4:9])), 12)
    assert torch.equal(alone.ids, decoded.ids[1:2])
    assert torch.allclose(alone.queries, decoded.queries[1:2], atol=1e-5)


def test_every_sample_of_a_column_is_its_own_faces(repository: Path) -> None:
    """Whatever the batch size: faces that fill no batch, and more samples than a batch holds."""
    torch.manual_seed(4)
    codec = build_codec(configfile.load(repository / "presets" / "smoke.yaml").train_codec).eval()
    channels = codec.config.latent_channels
    generator = Generator(channels, 8, 2, 1, 4, 8, 2, 16, CAPTION).eval()
    parts = ("lq_encoder", "image_tokenizer", "text_tokenizer", "integrator", "connectors")
    pipeline = PrefRestorePipeline(**dict.fromkeys(parts), codec=codec, generator=generator)
    conditions = Condition(torch.randn(5, TOKENS, CAPTION), torch.randn(5, channels, 8, 8), torch.zeros(5, 0))
    names = tuple("abcde")
    blank = np.zeros((5, 32, 32, 3), np.uint8)
    pairs = PairSet(names, ("",) * 5, blank, blank[:, None], ((),) * 5, np.full((5, 68, 2), np.nan, np.float32))
    expected = np.empty((3, 5, 32, 32, 3), np.int16)
    for face, sample in np.ndindex(5, 3):
        noise = pipeline.initial_noise([derive("evaluate", 9, names[face], sample)])
        expected[sample, face] = to_uint8(pipeline.decode(pipeline.sample(conditions.select([face]), noise, 2)))[0]
    for batch_size in (2, 7):
        column = sampled_column("base", pipeline, conditions, pairs, Sampling(3, 2, batch_size, 9))
        assert column.samples.shape == expected.shape
        assert np.abs(column.samples - expected).max() <= 1
    assert np.abs(expected[0] - expected[1]).max() > 10
