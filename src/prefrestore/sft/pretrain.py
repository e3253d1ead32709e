"""Stage A of the paper: step 1 teaches the integrator, step 2 the generator and the LQ branch (section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from prefrestore.config import PretrainConfig, StepConfig
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.diffusion.flow import flow_matching_loss, interpolate, uniform_sigma
from prefrestore.models.condition import Condition
from prefrestore.models.connectors import build_connectors
from prefrestore.models.generator import build_generator
from prefrestore.models.integrator import Decoded, build_integrator
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.reference_import import Layout, import_stage_a
from prefrestore.models.text import Vocabulary, train_text_tokenizer
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.crew import accelerator
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.seeding import batch_indices, derive, rng, torch_generator
from prefrestore.runtime.sharding import copy_whole
from prefrestore.runtime.training import FitSettings, History, device_of, fit
from prefrestore.sft.baseline import regression_loss
from prefrestore.sft.conditions import (
    TrainingPairs,
    corrupt,
    draw_sources,
    flatten_pairs,
    forced_queries,
    generated,
)
from prefrestore.sft.sequences import build_sequences, code_loss, final_states, queries_of
from prefrestore.sft.warm_start import take_over


@dataclass(frozen=True)
class Pretrained:
    """The trained restorer, both curves, and the share of codes that the integrator generates right."""

    pipeline: PrefRestorePipeline
    step1: History
    step2: History
    id_accuracy: float


def build_pipeline(
    config: PretrainConfig, codec: AutoencoderDC, tokenizer: ImageTokenizer, pairs: PairSet
) -> PrefRestorePipeline:
    """Return the restorer around a trained codec and image tokenizer: untrained, or with given weights."""
    if config.weights:
        return import_stage_a(config.weights, Layout(config, codec, tokenizer, pairs.image_size))
    torch.manual_seed(derive(config.seed, "pretrain"))
    text_tokenizer = train_text_tokenizer(pairs.captions, config.integrator.text_vocabulary)
    vocabulary = Vocabulary(
        config.integrator.text_vocabulary, tokenizer.config.codebook_size, config.integrator.text_first
    )
    latent_size = pairs.image_size // codec.spatial_compression_ratio
    query_size = config.integrator.hidden_size
    generator = build_generator(config.generator, codec.config.latent_channels, latent_size, query_size)
    connectors = build_connectors(
        config.generator, query_size, tokenizer.grid, (codec.config.latent_channels, latent_size)
    )
    pipeline = PrefRestorePipeline(
        codec=codec.requires_grad_(False),
        lq_encoder=LqEncoder.from_codec(codec, config.lq_corrector),
        image_tokenizer=tokenizer.requires_grad_(False),
        text_tokenizer=text_tokenizer,
        integrator=build_integrator(config.integrator, vocabulary),
        connectors=connectors,
        generator=generator,
        sampler_steps=config.sampler_steps,
        guidance=config.guidance,
    )
    pipeline.set_progress_bar_config(disable=True)
    if config.start:
        take_over(pipeline, config.start)
    return pipeline


def pretrain(
    config: PretrainConfig, pipeline: PrefRestorePipeline, pairs: PairSet, step1: Checkpoints, step2: Checkpoints
) -> Pretrained:
    """Train both steps; each resumes from its own checkpoints."""
    pipeline.to(accelerator().device)
    _checkpoint_gradients(pipeline, config.gradient_checkpointing)
    data = flatten_pairs(pipeline, pairs, config.caption_share, config.seed)
    with _cut(pipeline, config.sharded) as worked_on:
        first = train_step1(config, worked_on, data, step1)
    pipeline.integrator.eval()  # decoding keeps a cache, which gradient checkpointing forbids
    decoded, accuracy = generated(pipeline, data)
    pipeline.connectors.measure_text(decoded.text)
    with _cut(pipeline, config.sharded) as worked_on:
        second = train_step2(config, worked_on, data, decoded, step2)
    for module in _networks(pipeline).values():
        module.eval().requires_grad_(False)
    _checkpoint_gradients(pipeline, False)
    return Pretrained(pipeline, first, second, accuracy)


@contextmanager
def _cut(pipeline: PrefRestorePipeline, sharded: bool) -> Iterator[PrefRestorePipeline]:
    """Give what a step may cut over the processes: a copy, whose weights come back at the end.

    Modules that were cut cannot be made whole again. Meanwhile the pipeline itself waits in main memory.
    """
    if not sharded or accelerator().num_processes == 1:
        yield pipeline
        return
    device = pipeline.device
    pipeline.to("cpu")
    copy = deepcopy(pipeline)
    for frozen in (copy.codec, copy.image_tokenizer):
        frozen.to(device)
    yield copy
    copy_whole(_networks(copy), _networks(pipeline))
    pipeline.to(device)


def _checkpoint_gradients(pipeline: PrefRestorePipeline, on: bool) -> None:
    if on:
        pipeline.generator.transformer.enable_gradient_checkpointing()
        pipeline.integrator.activation_checkpointing_enable({"use_reentrant": False})
    else:
        pipeline.generator.transformer.disable_gradient_checkpointing()
        pipeline.integrator.activation_checkpointing_disable()


def train_step1(
    config: PretrainConfig, pipeline: PrefRestorePipeline, data: TrainingPairs, checkpoints: Checkpoints
) -> History:
    """Teach the integrator HQ's codes by cross-entropy, and the generator to read its queries by flow matching."""
    settings, seed = config.step1, derive(config.seed, "step 1")
    _freeze_all_but(pipeline, _STEP1[config.trainable])

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        own = part.of(settings.batch_size)
        rows = torch.as_tensor(batch_indices(len(data), settings.batch_size, seed, step))
        lq_ids = _lq_codes(config, pipeline, data, rows, step)[own]
        rows, where = rows[own], device_of(pipeline.integrator)
        prompt = pipeline.prompts(lq_ids.to(where), [data.captions[row] for row in rows.tolist()])
        sequences = build_sequences(pipeline, prompt, data.hq_ids[rows].to(where))
        states = final_states(pipeline, sequences)
        cross_entropy, accuracy = code_loss(pipeline, states, sequences, config.prompt_loss)
        # The paper's step 1 shows the generator the queries alone: LQ tokens, LQ's spatial path and text stay empty.
        latents = data.latents[rows].to(where)
        queries = queries_of(states, sequences, config.query_span)
        draw = draw_flow(settings, tuple(latents.shape[1:]), (seed, step))
        alone = Condition(
            pipeline.connectors.diffusion_connector(queries),
            torch.zeros_like(latents) + pipeline.connectors.placed(queries),
            latents.new_zeros(len(latents), pipeline.generator.config.text_size),
        )
        flow = _flow_loss(pipeline, latents, alone, draw.take(own, where))
        return {"loss": cross_entropy + flow, "cross_entropy": cross_entropy, "flow": flow, "id_accuracy": accuracy}

    return fit("pretrain step 1", _networks(pipeline), step_loss, _fit_settings(config, settings, ema=0.0), checkpoints)


def train_step2(
    config: PretrainConfig,
    pipeline: PrefRestorePipeline,
    data: TrainingPairs,
    decoded: Decoded,
    checkpoints: Checkpoints,
) -> History:
    """Train generator, LQ branch and LQ encoder on what the integrator, now frozen, says of all M samples."""
    settings, seed = config.step2, derive(config.seed, "step 2")
    _freeze_all_but(pipeline, _STEP2[config.trainable])
    if config.lq_corrector:  # the codec's own encoder reads what the corrector makes of LQ
        pipeline.lq_encoder.encoder.requires_grad_(False)

    def step_loss(step: int, part: Part) -> dict[str, Tensor]:
        own = part.of(settings.batch_size)
        rows = torch.as_tensor(batch_indices(len(data), settings.batch_size, seed, step))
        where = device_of(pipeline.generator)
        latents = data.latents[rows[own]].to(where)
        seen = _seen_queries(config, pipeline, (data, decoded.queries), rows, step)[own].to(where)
        spatial, encoder = _lq_latent(pipeline, data, rows[own], latents)
        shown = torch.from_numpy(rng(seed, "shown", step).random(len(rows)) >= config.lq_dropout)[own].to(spatial)
        draw = draw_flow(settings, tuple(latents.shape[1:]), (seed, step))
        text = decoded.text[rows[own]].to(where)
        condition = join_shown(pipeline, (seen, spatial, text), shown)
        flow = _flow_loss(pipeline, latents, condition, draw.take(own, where))
        return {"loss": flow + encoder, "flow": flow, "lq_encoder": encoder}

    ema = config.ema_decay
    return fit("pretrain step 2", _networks(pipeline), step_loss, _fit_settings(config, settings, ema), checkpoints)


def _lq_latent(
    pipeline: PrefRestorePipeline, data: TrainingPairs, rows: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the LQ latent [B, C, h, w] and the LQ encoder's loss: in latents, or in pixels where it has a corrector.

    A corrector learns from pixels alone: no gradient comes back to it through the encoder.
    """
    encoder = pipeline.lq_encoder
    lq = to_tensor(data.lq[rows.numpy()]).to(latents.device)
    if encoder.corrector is None:
        spatial = encoder(lq)
        return spatial, (spatial - latents).square().mean()
    corrected = encoder.corrected(lq)
    with torch.no_grad():
        spatial = encoder.encode(corrected)
    return spatial, regression_loss(corrected - to_tensor(data.hq_images(rows.numpy())).to(lq))


def _lq_codes(
    config: PretrainConfig, pipeline: PrefRestorePipeline, data: TrainingPairs, rows: Tensor, step: int
) -> Tensor:
    """Return LQ's codes [B, n] of a step-1 batch; of some captioned samples random ones, so that the text must do."""
    random = rng(config.seed, "text only", step)
    blind = random.random(len(rows)) < config.text_only
    blind &= np.array([bool(data.captions[row]) for row in rows.tolist()])
    codes = data.lq_ids[rows]
    strangers = corrupt(codes, 1.0, pipeline.image_tokenizer.config.codebook_size, random)
    return torch.where(torch.from_numpy(blind)[:, None], strangers, codes)


def _seen_queries(
    config: PretrainConfig,
    pipeline: PrefRestorePipeline,
    cached: tuple[TrainingPairs, Tensor],
    rows: Tensor,
    step: int,
) -> Tensor:
    """Return the queries [B, n + 1, D] of a step-2 batch: cached ones, or on HQ's own or corrupted codes."""
    data, generated = cached
    random = rng(config.seed, "condition ids", step)
    sources = draw_sources(config.condition_ids, step / config.step2.steps, random, len(rows))
    seen = generated[rows].clone()
    forced = torch.from_numpy(sources != "generated")
    if forced.any():
        size = pipeline.image_tokenizer.config.codebook_size
        spoilt = corrupt(data.hq_ids[rows], config.condition_ids.corruption, size, random)
        ids = torch.where(torch.from_numpy(sources == "corrupted")[:, None], spoilt, data.hq_ids[rows])
        seen[forced] = forced_queries(pipeline, data, rows[forced], ids[forced], config).to(seen)
    return seen


def join_shown(pipeline: PrefRestorePipeline, parts: tuple[Tensor, Tensor, Tensor], shown: Tensor) -> Condition:
    """Return the condition of queries, LQ latents and texts; where ``shown`` [B] is 0 it holds nothing of LQ.

    Neither LQ tokens nor the LQ latent are seen there: the queries must do.
    """
    queries, spatial, text = parts
    condition = pipeline.join(queries, spatial * shown[:, None, None, None], text)
    is_query = torch.arange(condition.tokens.shape[1], device=shown.device) < queries.shape[1]
    kept = torch.where(is_query, 1.0, shown[:, None])
    return Condition(condition.tokens * kept[..., None], condition.spatial, condition.text)


@dataclass(frozen=True)
class FlowDraw:
    """The random part of a flow-matching loss: levels [B], noise [B, C, h, w], and 0 where the condition is dropped."""

    sigma: Tensor
    noise: Tensor
    kept: Tensor

    def take(self, rows: slice, where: torch.device) -> FlowDraw:
        """Return some samples' share, on a device."""
        return FlowDraw(*(values[rows].to(where) for values in (self.sigma, self.noise, self.kept)))


def draw_flow(settings: StepConfig, latent_shape: tuple[int, ...], key: tuple[int, int]) -> FlowDraw:
    """Draw for a whole batch, from a key, so that the draw does not depend on who computes which part (1.10, 1.11)."""
    draw = torch_generator("flow", *key)
    sigma = uniform_sigma(settings.batch_size, draw)
    noise = torch.randn((settings.batch_size, *latent_shape), generator=draw)
    return FlowDraw(
        sigma, noise, (torch.rand(settings.batch_size, generator=draw) >= settings.condition_dropout).float()
    )


def _flow_loss(pipeline: PrefRestorePipeline, latents: Tensor, condition: Condition, draw: FlowDraw) -> Tensor:
    """Return the flow-matching loss, with some samples' condition tokens and text dropped."""
    kept = draw.kept[:, None]
    dropped = Condition(condition.tokens * kept[..., None], condition.spatial, condition.text * kept)
    velocity = pipeline.velocity(interpolate(latents, draw.noise, draw.sigma), draw.sigma, dropped)
    return flow_matching_loss(velocity, latents, draw.noise)


_STEP1 = {
    "all": ("integrator.", "connectors.", "generator."),
    "paper": (
        "integrator.",
        "connectors.diffusion_connector.",
        "generator.transformer.caption_projection.",
        "generator.transformer.caption_norm.",
    ),
}
_STEP2 = {
    "all": ("connectors.", "generator.", "lq_encoder."),
    "paper": ("connectors.vae_connector.", "generator.transformer.transformer_blocks.", "lq_encoder."),
}
"""Name prefixes of what each step trains; ``paper`` is the table of reference-method section 2."""

_ZERO_STARTED = (
    "connectors.position_projection.",
    "connectors.placement.",
    "generator.transformer.gain.",
    "generator.transformer.patch_embed.",
    "generator.transformer.time_embed.text.",
)
"""Our additions to the published model, trained in step 2 whatever the mode (a frozen zero would stay zero)."""


_BLOCKS = (SanaTransformerBlock, Qwen3DecoderLayer)
"""What ``sharded`` gathers piece by piece."""


def _freeze_all_but(pipeline: PrefRestorePipeline, prefixes: tuple[str, ...]) -> None:
    if prefixes is _STEP2["paper"]:
        prefixes += _ZERO_STARTED
    for prefix, module in _networks(pipeline).items():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(f"{prefix}.{name}".startswith(prefixes))


def _networks(pipeline: PrefRestorePipeline) -> dict[str, nn.Module]:
    names = ("integrator", "connectors", "generator", "lq_encoder")
    return {name: getattr(pipeline, name) for name in names}


def _fit_settings(config: PretrainConfig, step: StepConfig, ema: float) -> FitSettings:
    return FitSettings(
        step.steps,
        step.learning_rate,
        config.checkpoint_every,
        ema_decay=ema,
        accumulation=config.accumulation,
        bfloat16=config.precision == "bfloat16",
        sharded=_BLOCKS if config.sharded else (),
    )
