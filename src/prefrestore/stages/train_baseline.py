"""Stage ``train_baseline``: the regression U-Net that every restorer is held against."""

from __future__ import annotations

from pathlib import Path

from prefrestore.artifacts import write_json
from prefrestore.config import TrainBaselineConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.sft.baseline import train_baseline


def run(config: TrainBaselineConfig, *, pairs: Path, baseline: Path) -> None:
    """Train on the training pairs and save the network."""
    checkpoints = Checkpoints("train_baseline", config, {"pairs": pairs})
    network, history = train_baseline(config, load_pairs(pairs, "train"), checkpoints)
    network.save_pretrained(baseline)
    write_json(baseline / "history.json", history)
