"""The one configuration: a section per stage, loaded from YAML into frozen strict models.

No field has a default: ``params.yaml`` says everything, so DVC and KFP see every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Circumstance:
    """Marks a field that says where or by how many, not what is computed: it leaves no trace in results."""


Workers = Annotated[int, Field(gt=0), Circumstance()]
Address = Annotated[str, Circumstance()]


class Section(BaseModel):
    """Base of every section: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """Return the values that decide what comes out, as JSON values: all but circumstances."""
        fields = type(self).model_fields.items()
        marked = {name for name, field in fields if any(isinstance(mark, Circumstance) for mark in field.metadata)}
        return self.model_dump(mode="json", exclude=marked)


# --- data -----------------------------------------------------------------------------------------


class IngestConfig(Section):
    """Where faces come from."""

    source: Literal["portraits", "folder", "parquet", "tar", "hf", "s3"] = Field(description="kind of source")
    uri: Address = Field(description="folder, file or address; empty for portraits")
    image_size: Positive = Field(description="side of the square faces, pixels")
    num_train: Count = Field(description="training faces to take (0: all there are)")
    num_eval: Count = Field(description="evaluation faces to take (0: all there are)")
    drawn: Count = Field(
        description="captioned portraits of our own drawing added to another source's training faces, so that text "
        "keeps its meaning where photographs have no captions"
    )
    aligned: bool = Field(description="images are FFHQ-aligned faces already: do not detect and align again")
    split: Literal["folder", "identity", "hash"] = Field(
        description="folder: subfolders train/ and val/ (by hash where there are none); identity: by person"
    )
    eval_share: Share = Field(description="share of faces held out where the split is by hash or identity")
    licence: str = Field(description="licence of the images where the source does not name one")
    shard_rows: Positive = Field(description="faces in one Parquet file: the unit of memory and of sharded work")
    seed: Count
    workers: Workers = Field(description="processes")


class DegradeConfig(Section):
    """How LQ images are made (reference-method section 3)."""

    recipe: str = Field(description="recipe of the training pairs")
    eval_recipe: str = Field(description="recipe of the frozen evaluation pairs")
    variants: Positive = Field(description="recorded degradations of each training face (K)")
    shard_index: Count = Field(description="which part of the work to do, from 0")
    shard_count: Positive = Field(description="parts the work is cut into (1: all of it)")
    seed: Count
    workers: Workers = Field(description="processes")


class ValidateConfig(Section):
    """What the manifest of the pairs must satisfy."""

    min_train: Positive
    min_eval: Positive
    max_rejected: Share = Field(description="share of source images that may be set aside")
    near_duplicate: Count = Field(description="faces of both splits whose 256-bit hashes differ in no more bits leak")
    reference: str | None = Field(description="statistics of an earlier data version (a reference.json); null: none")
    reference_digest: str | None = Field(description="sha256 of that file, so that the choice is pinned")
    max_drift: Share = Field(description="largest Kolmogorov-Smirnov distance to the reference, per column")


# --- supervised training --------------------------------------------------------------------------


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
    integrator: IntegratorConfig
    generator: GeneratorConfig
    step1: StepConfig
    step2: StepConfig
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
    sampler_steps: Positive = Field(description="default number of sampling steps of the pipeline")
    guidance: Weight = Field(description="default classifier-free guidance; 1: the condition alone, at half the cost")
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    seed: Count

    @model_validator(mode="after")
    def _null_is_trained(self) -> Self:
        if self.guidance != 1 and self.step2.condition_dropout == 0:
            raise ValueError(f"guidance {self.guidance} needs samples without condition: step2.condition_dropout is 0")
        return self


# --- preferences and alignment --------------------------------------------------------------------


class SampleCandidatesConfig(Section):
    """What people or the simulated annotator compare."""

    num_faces: Positive = Field(description="training faces to draw candidates for")
    samples: Positive = Field(description="seeds per face and step count")
    step_counts: tuple[Positive, ...] = Field(description="sampling steps to draw with")
    checkpoints: tuple[str, ...] = Field(
        description="folders to draw from besides base: policies trained on it, releases, other bases"
    )
    batch_size: Positive
    seed: Count


class OracleWeights(Section):
    """How much each quality of a restoration, measured against HQ, matters to the simulated annotator."""

    psnr: Weight
    structure: Weight = Field(description="MS-SSIM")
    edges: Weight = Field(description="gradient similarity")
    sharpness: Weight = Field(description="closeness of the high-band energy to that of HQ")
    colour: Weight = Field(description="closeness of the smoothed chroma to HQ's")
    texture: Weight = Field(description="similarity of the local contrast to HQ's")
    low_band: Weight = Field(description="closeness of averages over 4, 8 and 16 pixels to HQ's")


class SimulatedAnnotatorConfig(Section):
    """A documented, noisy Bradley-Terry choice over fidelity to HQ (``reward_model.annotator``)."""

    pairs: Count = Field(description="pairs to judge (0: none)")
    annotators: Positive = Field(description="pseudonyms that share the pairs")
    doubled: Share = Field(description="share of pairs that a second annotator judges too")
    temperature: Rate = Field(description="noise of the choice in standard deviations of utility; 0: a perfect judge")
    tie_margin: Weight = Field(description="noisy utility difference below which the judge calls a tie")
    weights: OracleWeights


class JudgeConfig(Section):
    """A judge beside the reward: it has faces of its own and, where votes are simulated, an oracle of its own."""

    share: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        description="share of the faces set apart for it (0: no judge)"
    )
    weights: OracleWeights


class JudgesConfig(Section):
    """Judges that share neither data nor oracle with the reward."""

    validation: JudgeConfig = Field(description="may stop alignment")
    test: JudgeConfig = Field(description="only the evaluation asks it")


class CollectPreferencesConfig(Section):
    """Votes of people, merged with simulated ones."""

    votes: str | None = Field(description="vote store, a folder or s3://BUCKET/PREFIX; null: none")
    simulated: SimulatedAnnotatorConfig
    judges: JudgesConfig
    seed: Count


class TrainRewardConfig(Section):
    """Preference reward model, and the judges beside it: ensembles of networks, pairwise Bradley-Terry with ties."""

    width: Annotated[int, Field(gt=0, multiple_of=4)] = Field(description="channels of the first level")
    levels: Positive = Field(description="resolutions looked at, from half the image size down")
    members: Positive = Field(description="networks in the ensemble")
    steps: Positive
    batch_size: Positive = Field(description="pairs per step")
    learning_rate: Rate
    weight_decay: Weight
    label_smoothing: Share | Literal["agreement"] = Field(
        description="share of each label that goes evenly to all outcomes; agreement: what the annotators' own implies"
    )
    corrupted: Share = Field(description="pairs of a candidate and its spoilt copy, as a share of the batch")
    held_out: Share = Field(description="share of faces kept out for the accuracy figure")
    weights: Mapping[str, float] = Field(description="composite reward: weight of each named reward")
    lpips_weights: str | None = Field(description="file that prefrestore.models.lpips describes, for the reward lpips")
    clip_models: Mapping[Literal["clip_score", "pick_score"], str] = Field(
        description="folder or hub id of the model of these rewards; read when a weight names one"
    )
    measured: Positive = Field(description="candidates on which the composite's reference statistics are measured")
    workers: Workers = Field(description="processes for face analysis")
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    seed: Count


class LoraConfig(Section):
    """Low-rank adapters of the roles policy, old and ema (reference-method 4.1, 4.2)."""

    rank: Positive
    alpha: Positive


class GuardConfig(Section):
    """Watches faces held out of the training split while the policy is trained; ends a run that games its reward."""

    every: Positive = Field(description="epochs between looks")
    faces: Positive = Field(description="training faces held out for it")
    samples: Annotated[int, Field(ge=2)] = Field(description="seeds per held-out face")
    patience: Positive = Field(description="looks in a row below a margin after which the run ends")
    margins: Mapping[str, Weight] = Field(
        description="how far a metric may fall below base's: identity, structure, psnr, sharpness (share of HQ's) or "
        "judge (the validation judge, log-odds)"
    )


class AlignConfig(Section):
    """DiffusionNFT (reference-method section 4; symbols in docs/notation.md)."""

    lora: LoraConfig
    epochs: Positive
    pool: Positive = Field(description="LQ images of the training split to draw from; their conditions are cached")
    caption_share: Share = Field(description="share of the pool whose prompt carries the caption")
    groups: Positive = Field(description="LQ images per epoch")
    group_size: Annotated[int, Field(ge=2)] = Field(description="samples per LQ image (K)")
    sampler_steps: Positive
    solver_end: Literal["zero", "paper"] = Field(description="where rollouts end: sigma 0, or 1/steps as published")
    reward_sum: Literal["standardised", "raw"] = Field(description="parts standardised within a group before weighting")
    advantage_norm: Literal["global_std", "group_std"]
    local_share: Share = Field(
        description="share of the advantage judged place by place: nearness of each latent cell to HQ's (paper: 0)"
    )
    advantage_clip: Rate = Field(description="clip of advantages; also the published factor on the loss")
    updates: Positive = Field(description="optimizer steps per epoch, each on whole groups")
    timesteps: Positive = Field(description="noise levels trained per sample")
    timestep_choice: Literal["stratified", "grid"] = Field(
        description="one level from each of equal parts of (0, 1], or distinct values of the solver's grid (paper)"
    )
    shared_noise: bool = Field(description="samples of a group get the same noise and levels: less gradient variance")
    batch_size: Positive = Field(description="samples in one forward; changes cost, not results beyond rounding")
    nft_beta: Rate = Field(description="mix of policy and old velocity (paper's beta)")
    kl_weight: Weight = Field(description="weight of the squared velocity difference to ref")
    kl_timesteps: Count = Field(description="of the trained levels, how many also run ref (0: no KL term)")
    old_decay: Literal["paper", "none", "delayed"] = Field(description="schedule of the old policy")
    learning_rate: Rate
    weight_decay: Weight
    max_grad_norm: Rate
    ema_decay: Share = Field(description="cap of the moving average's decay")
    guard: GuardConfig
    checkpoint_every: Positive = Field(description="optimizer steps between checkpoints")
    workers: Workers = Field(description="processes for rewards that look at faces")
    seed: Count

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.groups % self.updates:
            raise ValueError(f"groups ({self.groups}) must be a multiple of updates ({self.updates})")
        if self.kl_timesteps > self.timesteps:
            raise ValueError(f"kl_timesteps ({self.kl_timesteps}) must not exceed timesteps ({self.timesteps})")
        if self.timestep_choice == "grid" and self.timesteps > self.sampler_steps:
            raise ValueError(f"the solver's grid has {self.sampler_steps} levels, timesteps asks for {self.timesteps}")
        return self


# --- evaluation and release -----------------------------------------------------------------------


class FetchChampionConfig(Section):
    """The pinned champion; written by ``prefrestore model pin``."""

    registry: Address = Field(description="MLflow tracking URI")
    model: str
    version: Annotated[int, Field(gt=0)] | None
    digest: str | None


class EvaluateConfig(Section):
    """The frozen evaluation."""

    samples: Positive = Field(description="seeds per LQ image")
    sampler_steps: Positive
    batch_size: Positive = Field(description="fixed batch shape, so that bytes repeat")
    bootstrap: Positive = Field(description="resamples of the confidence intervals")
    confidence: Share = Field(description="confidence of the two-sided intervals")
    lpips_weights: str | None = Field(description="file that prefrestore.models.lpips describes; null: not measured")
    margins: Mapping[str, Weight] = Field(description="by metric: a loss up to this is 'not worse' (0 if not named)")
    faces_shown: Positive = Field(description="faces in the report's grid")
    workers: Workers = Field(description="processes for face analysis")
    seed: Count


class GateRule(Section):
    """One comparison of the policy; ``improve`` and ``not_worse`` must hold, ``watch`` is only reported."""

    metric: str = Field(description="name in the metric table (prefrestore.evaluation.metrics)")
    against: Literal["lq", "bicubic", "baseline", "base", "champion"]
    role: Literal["improve", "not_worse", "watch"]
    margin: Weight = Field(description="improve: by more than this; not_worse: by no more than this; metric's unit")


class GateLimit(Section):
    """A number of the policy itself, such as its cost or how well its uncertainty ranks errors."""

    number: str = Field(description="FILE.KEY.KEY into the JSON files of metrics, e.g. cost.flops_per_face")
    role: Literal["at_least", "at_most", "watch"]
    limit: float = Field(description="of an estimate, the unfavourable end of its interval must keep to it")


class GateBands(Section):
    """Groups of people that the policy must not serve worse than base does (paired gains within each group)."""

    kinds: tuple[str, ...] = Field(description="kinds of groups in groups.json, e.g. skin tone")
    margins: Mapping[str, Weight] = Field(description="by metric: the largest loss that a group may have")
    min_faces: Positive = Field(description="smaller groups are watched only")


class GateConfig(Section):
    """Rules that decide whether the policy may be published."""

    rules: tuple[GateRule, ...]
    limits: tuple[GateLimit, ...]
    bands: GateBands
    confidence: Share = Field(description="confidence of the two-sided intervals")
    bootstrap: Positive = Field(description="resamples of the confidence intervals")
    seed: Count


class PublishConfig(Section):
    """Where releases go."""

    registry: Address = Field(description="MLflow tracking URI")
    store: Address = Field(description="release store, a folder or s3://BUCKET/PREFIX")
    model: str
    licence: str = Field(description="licence of the released weights, as the hub names it (apache-2.0, other, ...)")


class Config(Section):
    """The whole configuration, one section per stage in the order of the stage table."""

    ingest: IngestConfig
    degrade: DegradeConfig
    validate_: ValidateConfig = Field(alias="validate")
    train_codec: TrainCodecConfig
    train_baseline: TrainBaselineConfig
    pretrain: PretrainConfig
    sample_candidates: SampleCandidatesConfig
    collect_preferences: CollectPreferencesConfig
    train_reward: TrainRewardConfig
    align: AlignConfig
    fetch_champion: FetchChampionConfig
    evaluate: EvaluateConfig
    gate: GateConfig
    publish: PublishConfig
