"""Stage A of the paper: step 1 teaches the integrator, step 2 the generator and the LQ branch (section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from prefrestore.config import PretrainConfig, StepConfig
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.diffusion.flow import flow_matching_loss, interpolate, uniform_sigma
from prefrestore.models.condition import Condition
from prefrestore.models.connectors import build_connectors
from prefrestore.models.generator import build_generator
from prefrestore.models.integrator import build_integrator, code_loss, teacher_forced
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.reference_import import Layout, import_stage_a
from prefrestore.models.text import Vocabulary, train_text_tokenizer
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.seeding import batch_indices, derive, rng, torch_generator
from prefrestore.runtime.training import FitSettings, History, fit
from prefrestore.sft.conditions import TrainingPairs, flatten_pairs, forced_queries, generated_queries


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
    """Return the restorer around a trained codec and image tokenizer: untrained, or with published weights."""
    if config.weights:
        return import_stage_a(config.weights, Layout(config, codec, tokenizer, pairs.image_size))
    torch.manual_seed(derive(config.seed, "pretrain"))
    text_tokenizer = train_text_tokenizer(pairs.captions, config.integrator.text_vocabulary)
    vocabulary = Vocabulary(config.integrator.text_vocabulary, tokenizer.config.codebook_size)
    latent_size = pairs.image_size // codec.spatial_compression_ratio
    generator = build_generator(config.generator, codec.config.latent_channels, latent_size)
    connectors = build_connectors(config.generator, config.integrator.hidden_size, tokenizer.grid, latent_size)
    pipeline = PrefRestorePipeline(
        codec=codec.requires_grad_(False),
        lq_encoder=LqEncoder.from_codec(codec),
        image_tokenizer=tokenizer.requires_grad_(False),
        text_tokenizer=text_tokenizer,
        integrator=build_integrator(config.integrator, vocabulary),
        connectors=connectors,
        generator=generator,
        sampler_steps=config.sampler_steps,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pretrain(
    config: PretrainConfig, pipeline: PrefRestorePipeline, pairs: PairSet, step1: Checkpoints, step2: Checkpoints
) -> Pretrained:
    """Train both steps; each resumes from its own checkpoints."""
    data = flatten_pairs(pipeline, pairs, config.caption_share, config.seed)
    first = train_step1(config, pipeline, data, step1)
    queries, accuracy = generated_queries(pipeline, data)
    second = train_step2(config, pipeline, data, queries, step2)
    for module in _networks(pipeline).values():
        module.eval().requires_grad_(False)
    return Pretrained(pipeline, first, second, accuracy)


def train_step1(
    config: PretrainConfig, pipeline: PrefRestorePipeline, data: TrainingPairs, checkpoints: Checkpoints
) -> History:
    """Teach the integrator HQ's codes by cross-entropy, and the generator to read its queries by flow matching."""
    settings, seed = config.step1, derive(config.seed, "step 1")
    _freeze_all_but(pipeline, _STEP1[config.trainable])

    def step_loss(step: int) -> dict[str, Tensor]:
        rows = torch.as_tensor(batch_indices(len(data), settings.batch_size, seed, step))
        captions = [data.captions[row] for row in rows.tolist()]
        prompt = pipeline.prompts(data.lq_ids[rows], captions)
        decoded = teacher_forced(pipeline.integrator, prompt, data.hq_ids[rows])
        cross_entropy, accuracy = code_loss(pipeline.integrator, decoded)
        # The paper's step 1 shows the generator the queries alone: LQ tokens and the spatial path stay empty.
        latents = data.latents[rows]
        tokens = pipeline.connectors.diffusion_connector(decoded.queries)
        flow = _flow_loss(pipeline, latents, Condition(tokens, torch.zeros_like(latents)), settings, (seed, step))
        return {"loss": cross_entropy + flow, "cross_entropy": cross_entropy, "flow": flow, "id_accuracy": accuracy}

    return fit("pretrain step 1", _networks(pipeline), step_loss, _fit_settings(config, settings, ema=0.0), checkpoints)


def train_step2(
    config: PretrainConfig,
    pipeline: PrefRestorePipeline,
    data: TrainingPairs,
    queries: Tensor,
    checkpoints: Checkpoints,
) -> History:
    """Train generator, LQ branch and LQ encoder on cached queries [M, n + 1, D]; the integrator is frozen."""
    settings, seed = config.step2, derive(config.seed, "step 2")
    _freeze_all_but(pipeline, _STEP2[config.trainable])

    def step_loss(step: int) -> dict[str, Tensor]:
        rows = torch.as_tensor(batch_indices(len(data), settings.batch_size, seed, step))
        seen = queries[rows].clone()
        forced = rng(seed, "forced", step).random(len(rows)) >= config.generated_ids
        if forced.any():
            seen[forced] = forced_queries(pipeline, data, rows[forced])
        latents = data.latents[rows]
        spatial = pipeline.lq_encoder(to_tensor(data.lq[rows.numpy()]))
        flow = _flow_loss(pipeline, latents, pipeline.join(seen, spatial), settings, (seed, step))
        encoder = (spatial - latents).square().mean()
        return {"loss": flow + encoder, "flow": flow, "lq_encoder": encoder}

    ema = config.ema_decay
    return fit("pretrain step 2", _networks(pipeline), step_loss, _fit_settings(config, settings, ema), checkpoints)


def _flow_loss(
    pipeline: PrefRestorePipeline, latents: Tensor, condition: Condition, settings: StepConfig, key: tuple[int, int]
) -> Tensor:
    """Return the flow-matching loss at random noise levels, with some samples' condition tokens dropped (1.10)."""
    draw = torch_generator("flow", *key)
    sigma = uniform_sigma(len(latents), draw)
    noise = torch.randn(latents.shape, generator=draw)
    kept = torch.rand(len(latents), generator=draw) >= settings.condition_dropout
    dropped = Condition(condition.tokens * kept[:, None, None], condition.spatial)
    velocity = pipeline.velocity(interpolate(latents, noise, sigma), sigma, dropped)
    return flow_matching_loss(velocity, latents, noise)


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
    "generator.gain.",
    "generator.transformer.patch_embed.",
)
"""Our additions to the published model, trained in step 2 whatever the mode (a frozen zero would stay zero)."""


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
    return FitSettings(step.steps, step.learning_rate, config.checkpoint_every, ema_decay=ema)
