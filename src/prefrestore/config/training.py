"""How codec, yardstick and restorer are built and trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefrestore.config.base import Count, Positive, Rate, Section, Share, Weight


class TokenizerConfig(Section):
    """Image tokenizer: SigLIP2-type ViT encoder and SimVQ codebook (reference-method 1.3)."""

    weights: str | None = Field(description="folder that `prefrestore model convert tokenizer` wrote; null: train")
    image_size: Positive = Field(description="side the encoder sees, pixels")
    patch_size: Positive
    hidden_size: Positive
    layers: Positive
    heads: Positive
    ffn_size: Positive
    codebook_size: Positive
    code_dim: Positive
    steps: Positive
    batch_size: Positive
    learning_rate: Rate


class TrainCodecConfig(Section):
    """Autoencoder (diffusers AutoencoderDC) and image tokenizer."""

    weights: str | None = Field(description="pretrained AutoencoderDC folder or hub id; null: train from scratch")
    latent_channels: Positive
    widths: tuple[Positive, ...] = Field(description="channels per stage; spatial factor is 2**(stages - 1)")
    layers: tuple[Count, ...] = Field(description="blocks per stage; none in the first lets training start from PCA")
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    tokenizer: TokenizerConfig
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    seed: Count


class TrainBaselineConfig(Section):
    """Regression U-Net trained on an L1 + MSE loss: the yardstick."""

    width: Positive
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    seed: Count


class IntegratorConfig(Section):
    """Auto-regressive integrator: Qwen3 decoder over text and image ids (reference-method 1.1, 1.2)."""

    hidden_size: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    ffn_size: Positive
    text_vocabulary: Positive = Field(description="size of the byte-pair vocabulary trained on the captions")
    text_first: bool = Field(description="prompts give the text before the LQ codes (published: after them)")


class GeneratorConfig(Section):
    """Diffusion generator: SanaTransformer2DModel (reference-method 1.7)."""

    patch_size: Positive
    layers: Positive
    heads: Positive
    head_dim: Positive
    cross_heads: Positive
    cross_head_dim: Positive
    caption_size: Positive
    ffn_ratio: Rate
    spatial_path: bool = Field(description="zero-initialised, spatially aligned LQ path")
    condition_position: bool = Field(description="zero-initialised 2-D position on condition tokens")
    query_path: bool = Field(description="zero-initialised, spatially aligned path of the queries beside LQ's")
    text_modulation: bool = Field(
        description="what the integrator says of the text modulates every block too, by a path that starts at zero"
    )


class StepConfig(Section):
    """One pretraining step."""

    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    condition_dropout: Share = Field(description="share of samples whose condition tokens are all zero")


class IdMix(Section):
    """By share of samples, the codes that step 2's queries rest on."""

    hq: Share = Field(description="HQ's own codes, as published; at inference nobody has them")
    generated: Share = Field(description="codes the integrator generates, as at inference")
    corrupted: Share = Field(description="HQ's codes, some of them replaced at random")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.hq + self.generated + self.corrupted
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares must sum to 1, not {total:g}")
        return self


class ConditionIdsConfig(Section):
    """The mix of codes over step 2: it goes linearly from ``start`` to ``end``."""

    start: IdMix
    end: IdMix
    corruption: Share = Field(description="share of a sample's codes replaced where they are corrupted")


class PretrainConfig(Section):
    """Stage A of the paper: step 1 (integrator), step 2 (generator, LQ branch, LQ encoder)."""

    weights: str | None = Field(
        description="Stage-A folder of the published layout, or hub id, to start from; null: random weights"
    )
    start: str | None = Field(
        description="folder of a base trained before, of the same sizes, codec and image tokenizer, to go on from"
    )
    integrator: IntegratorConfig
    generator: GeneratorConfig
    step1: StepConfig
    step2: StepConfig
    lq_corrector: Count = Field(
        description="width of a U-Net that corrects the LQ image before the codec's encoder sees it, a multiple of 8; "
        "0: none, the encoder itself is trained on LQ images (published)"
    )
    trainable: Literal["all", "paper"] = Field(
        description="all: a generator from scratch, trained whole; paper: what the paper trains of a pretrained one"
    )
    condition_ids: ConditionIdsConfig
    query_span: Literal["exact", "last_of_padded"] = Field(
        description="states taken as queries in training: the codes' own, or the padded sequence's last (published)"
    )
    prompt_loss: bool = Field(description="the integrator also learns to predict the prompt's text (published)")
    text_only: Share = Field(
        description="share of step 1's captioned samples whose LQ codes are random: only the text tells about HQ"
    )
    lq_dropout: Share = Field(description="share of step-2 samples that see the queries but not the LQ latent")
    caption_share: Share = Field(description="share of samples whose prompt carries the caption")
    ema_decay: Share
    precision: Literal["float32", "bfloat16"] = Field(description="of the computation; weights stay float32")
    accumulation: Positive = Field(description="parts that each process works on one after another: less memory")
    gradient_checkpointing: bool = Field(description="compute activations again in the backward pass: less memory")
    sharded: bool = Field(
        description="several processes each keep a part of weights, gradients and optimizer (FSDP): less memory"
    )
    sampler_steps: Positive = Field(description="default number of sampling steps of the pipeline")
    guidance: Weight = Field(description="default classifier-free guidance; 1: the condition alone, at half the cost")
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    seed: Count

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.weights and self.start:
            raise ValueError("weights and start: both say what to begin with: set one of them to null")
        return self

    @model_validator(mode="after")
    def _correctors_fit(self) -> Self:
        if self.lq_corrector % 8:
            raise ValueError(f"lq_corrector {self.lq_corrector}: give a multiple of 8 (its channels go in 8 groups)")
        if self.weights and self.lq_corrector:
            raise ValueError("lq_corrector: published weights have none: set it to 0, or weights to null")
        return self

    @model_validator(mode="after")
    def _null_is_trained(self) -> Self:
        if self.guidance != 1 and self.step2.condition_dropout == 0:
            raise ValueError(f"guidance {self.guidance} needs samples without condition: step2.condition_dropout is 0")
        return self
