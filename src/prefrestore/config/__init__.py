"""The one configuration: a section per stage, loaded from YAML into frozen strict models.

No field has a default: ``params.yaml`` says everything, so DVC and KFP see every value.
"""

from __future__ import annotations

from pydantic import Field

from prefrestore.config.base import Section
from prefrestore.config.data import DegradeConfig, IngestConfig, ValidateConfig
from prefrestore.config.preferences import (
    AlignConfig,
    CollectPreferencesConfig,
    GuardConfig,
    JudgeConfig,
    JudgesConfig,
    LocalConfig,
    LoraConfig,
    OracleWeights,
    SampleCandidatesConfig,
    SimulatedAnnotatorConfig,
    TrainRewardConfig,
)
from prefrestore.config.release import (
    EvaluateConfig,
    FetchChampionConfig,
    GateBands,
    GateConfig,
    GateLimit,
    GateRule,
    PublishConfig,
)
from prefrestore.config.training import (
    ConditionIdsConfig,
    GeneratorConfig,
    IdMix,
    IntegratorConfig,
    PretrainConfig,
    StepConfig,
    TokenizerConfig,
    TrainBaselineConfig,
    TrainCodecConfig,
)

__all__ = [
    "AlignConfig",
    "CollectPreferencesConfig",
    "ConditionIdsConfig",
    "Config",
    "DegradeConfig",
    "EvaluateConfig",
    "FetchChampionConfig",
    "GateBands",
    "GateConfig",
    "GateLimit",
    "GateRule",
    "GeneratorConfig",
    "GuardConfig",
    "IdMix",
    "IngestConfig",
    "IntegratorConfig",
    "JudgeConfig",
    "JudgesConfig",
    "LocalConfig",
    "LoraConfig",
    "OracleWeights",
    "PretrainConfig",
    "PublishConfig",
    "SampleCandidatesConfig",
    "Section",
    "SimulatedAnnotatorConfig",
    "StepConfig",
    "TokenizerConfig",
    "TrainBaselineConfig",
    "TrainCodecConfig",
    "TrainRewardConfig",
    "ValidateConfig",
]


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
