"""Stage ``train_codec``: the autoencoder and the image tokenizer, from scratch or by name of pretrained weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from prefrestore.artifacts import write_json
from prefrestore.config import TrainCodecConfig
from prefrestore.data.pairs import load_faces
from prefrestore.models.codec import load_codec
from prefrestore.models.reference_tokenizer import load_tokenizer
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.training import History
from prefrestore.sft.codec import round_trip_psnr, train_codec
from prefrestore.sft.tokenizer import codebook_use, train_tokenizer


def run(config: TrainCodecConfig, *, faces: Path, codec: Path) -> None:
    """Train both on the training faces; measure the round trip on the evaluation faces."""
    train, held_out = load_faces(faces, "train"), load_faces(faces, "eval")
    inputs = {"faces": faces}
    if config.weights:
        autoencoder, curve = load_codec(config.weights), History()
    else:
        autoencoder, curve = train_codec(config, train.images, Checkpoints("train_codec-codec", config, inputs))
    if config.tokenizer.weights:
        tokenizer, tokenizer_curve = load_tokenizer(config.tokenizer.weights), History()
    else:
        tokenizer, tokenizer_curve = train_tokenizer(
            config.tokenizer,
            train.images,
            config.seed,
            config.checkpoint_every,
            Checkpoints("train_codec-tokenizer", config, inputs),
        )
    ceiling = round_trip_psnr(autoencoder, held_out.images)
    autoencoder.save_pretrained(codec / "codec")
    tokenizer.save_pretrained(codec / "tokenizer")
    write_json(codec / "history.json", curve)
    write_json(codec / "tokenizer_history.json", tokenizer_curve)
    write_json(codec / "round_trip.json", {"psnr_mean": float(np.mean(ceiling)), "psnr_min": min(ceiling)})
    write_json(codec / "codebook.json", asdict(codebook_use(tokenizer, train.images)))
