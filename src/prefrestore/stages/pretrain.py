"""Stage ``pretrain``: the restorer's two supervised steps; writes a whole diffusers pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import AutoencoderDC

from prefrestore.artifacts import write_json
from prefrestore.config import PretrainConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.sft.pretrain import build_pipeline, pretrain

CODEC_RECORDS = {
    "history.json": "codec_history.json",
    "tokenizer_history.json": "tokenizer_history.json",
    "round_trip.json": "round_trip.json",
    "codebook.json": "codebook.json",
}


def run(config: PretrainConfig, *, pairs: Path, codec: Path, base: Path) -> None:
    """Train both steps on the training pairs and save pipeline, curves and the codec's records."""
    train = load_pairs(pairs, "train")
    pipeline = build_pipeline(
        config,
        AutoencoderDC.from_pretrained(codec / "codec").eval(),
        ImageTokenizer.from_pretrained(codec / "tokenizer").eval(),
        train,
    )
    inputs = {"pairs": pairs, "codec": codec}
    trained = pretrain(
        config,
        pipeline,
        train,
        Checkpoints("pretrain-step1", config, inputs),
        Checkpoints("pretrain-step2", config, inputs),
    )
    trained.pipeline.save_pretrained(base)
    write_json(base / "step1_history.json", trained.step1)
    write_json(base / "history.json", trained.step2)
    write_json(base / "integrator.json", {"id_accuracy": trained.id_accuracy})
    for source, target in CODEC_RECORDS.items():
        shutil.copyfile(codec / source, base / target)
