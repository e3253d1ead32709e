"""How judgements are gathered, learned from and aligned to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefrestore.config.base import Count, Positive, Rate, Section, Share, Weight, Workers


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

    backbone: str | None = Field(
        description="folder or hub id of a CLIP or SigLIP model to look through, frozen; null: networks from scratch"
    )
    patch: Positive = Field(description="side of the pixel blocks folded into channels before the first level")
    width: Annotated[int, Field(gt=0, multiple_of=4)] = Field(description="channels of the first level")
    levels: Positive = Field(
        description="resolutions looked at, from 1/patch of the image size down; with a backbone: depths"
    )
    members: Positive = Field(description="networks in the ensemble")
    steps: Positive
    batch_size: Positive = Field(description="pairs per step, over all processes")
    accumulation: Positive = Field(description="parts of each process's share of a batch, one after another")
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


class LocalConfig(Section):
    """Weights of what is judged place by place, each standardised within its group (``rl/local.py``)."""

    nearness: Weight = Field(description="to HQ")
    agreement: Weight = Field(description="with the group's mean: lowers solution entropy")
    detail: Weight = Field(description="that the group agrees on, where it falls short of HQ's")


class GuardConfig(Section):
    """Watches faces held out of the training split while the policy is trained; ends a run that games its reward."""

    every: Positive = Field(description="epochs between looks")
    faces: Positive = Field(description="training faces held out for it")
    samples: Annotated[int, Field(ge=2)] = Field(description="seeds per held-out face")
    patience: Positive = Field(description="looks in a row below a margin after which the run ends")
    certainty: Weight = Field(
        description="weight, in the score that chooses the kept policy, of the share of base's spread that is gone; "
        "reward_total has weight 1"
    )
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
    local_share: Share = Field(description="share of the advantage judged place by place (paper: 0)")
    local: LocalConfig
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
    spread_weight: Weight = Field(
        description="weight of how far a face's first estimates from two noises lie apart, squared (paper: 0)"
    )
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
