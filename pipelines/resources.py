"""What each step asks of its node: the one place for processors, memory, time and tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

HOUR = 3600


@dataclass(frozen=True)
class Resources:
    """Requests and limits of a step."""

    image: Literal["data", "train"]
    cpu: str
    memory: str
    hours: int
    retries: int = 2


PREFLIGHT = Resources("data", "1", "2Gi", 1, retries=0)
SMALL = Resources("data", "1", "4Gi", 1)
STEPS: Mapping[str, Resources] = {
    "ingest": Resources("data", "4", "8Gi", 12),
    "degrade": Resources("data", "8", "16Gi", 12),
    "validate": Resources("data", "2", "8Gi", 2),
    "train_codec": Resources("train", "8", "64Gi", 48, retries=5),
    "train_baseline": Resources("train", "8", "32Gi", 24, retries=5),
    "pretrain": Resources("train", "16", "128Gi", 240, retries=10),
    "sample_candidates": Resources("train", "8", "64Gi", 12, retries=5),
    # Scores of faces need torch, no GPU.
    "collect_preferences": Resources("train", "4", "16Gi", 6),
    "train_reward": Resources("train", "8", "32Gi", 24, retries=5),
    "align": Resources("train", "16", "128Gi", 120, retries=10),
    "fetch_champion": SMALL,
    "evaluate": Resources("train", "8", "64Gi", 12, retries=5),
    "gate": Resources("train", "2", "8Gi", 1),
    # A release names the versions of torch and the others that its weights were made with.
    "publish": Resources("train", "1", "4Gi", 1),
}
BACKOFF = "10s"
BACKOFF_FACTOR = 2.0
BACKOFF_MAX = "600s"
SHARED_MEMORY = "8Gi"
