"""How a candidate is measured, judged and published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from prefrestore.config.base import Address, Count, Positive, Section, Share, Weight, Workers


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
    workers: Workers = Field(description="processes for face analysis, threads for LPIPS")
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
