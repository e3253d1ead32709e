"""A small restorer with an adapter that acts, made in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from prefrestore import artifacts, configfile
from prefrestore.data.images import decode_png
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.faces.intake import portrait
from prefrestore.models.adapters import add_roles, role_tensors, save_policy
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.sft.pretrain import build_pipeline

SIZE, FACES = 32, 12
NOISE = 0.02
"""Of every weight of the generator: untrained it ends in zeros, and nothing could be seen through them."""


def small_model(repository: Path, root: Path) -> Path:
    """Write the folders ``base`` and ``policy`` at the smoke preset into ``root`` and return it."""
    preset = configfile.load(repository / "presets" / "smoke.yaml")
    faces = [decode_png(portrait((number, "eval"), SIZE, 0).faces[0].image) for number in range(FACES)]
    hq = np.stack(faces)
    landmarks = np.full((FACES, 68, 2), np.nan, np.float32)
    pairs = PairSet(tuple("abcdefghijkl"), ("a person with glasses",) * FACES, hq, hq[:, None], (), landmarks)
    torch.manual_seed(0)
    codec = build_codec(preset.train_codec).eval()
    start_linear(codec, to_tensor(hq))
    pipeline = build_pipeline(preset.pretrain, codec, build_tokenizer(preset.train_codec.tokenizer).eval(), pairs)
    with torch.no_grad():
        for weight in pipeline.generator.parameters():
            weight.add_(NOISE * torch.randn_like(weight))
    pipeline.save_pretrained(root / "base")
    add_roles(pipeline, preset.align.lora, 0)
    tensors = {name: value + NOISE for name, value in role_tensors(pipeline, "policy").items()}
    (root / "policy").mkdir()
    save_policy(root / "policy", tensors, preset.align.lora, artifacts.digest(root / "base"))
    return root
