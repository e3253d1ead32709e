"""Pretraining that goes on from a base trained before: its weights, and a fresh optimizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prefrestore.errors import UserError
from prefrestore.models.pipeline import PrefRestorePipeline

FROZEN = ("codec", "image_tokenizer")
TRAINED = ("lq_encoder", "integrator", "connectors", "generator")
NEWER = ("transformer.time_embed.text.", "placement.", "text_mean", "text_deviation")
"""Weights that an older base may lack: they start at zero, or are measured."""


def take_over(pipeline: PrefRestorePipeline, start: str) -> None:
    """Give an untrained pipeline the weights and the text tokenizer of a base (a folder that ``pretrain`` wrote).

    Raises:
        UserError: there is no such base, its sizes are others, or it was trained on another codec or image tokenizer.
    """
    base = PrefRestorePipeline.from_pretrained(Path(start))
    for name, port in zip(FROZEN, ("weights", "tokenizer.weights"), strict=True):
        if not _equal(getattr(pipeline, name), getattr(base, name)):
            key, folder = f"train_codec.{port}", Path(start) / name
            raise UserError(f"pretrain.start: {start} was trained on another {name}: set {key} to {folder}")
    for name in TRAINED:
        if name == "lq_encoder" and base.lq_encoder.corrector is None and pipeline.lq_encoder.corrector is not None:
            continue  # a corrector's encoder is the codec's own, not one that was trained on LQ images
        problem = _load(getattr(pipeline, name), getattr(base, name))
        if problem:
            raise UserError(f"pretrain.start: {start}: {name}.{problem}: give pretrain the sizes that it has")
    pipeline.register_modules(text_tokenizer=base.text_tokenizer)


def _equal(first: nn.Module, second: nn.Module) -> bool:
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def _load(module: nn.Module, source: nn.Module) -> str:
    """Copy weights; return what does not fit, or nothing."""
    own, given = module.state_dict(), source.state_dict()
    for name in sorted(own.keys() ^ given.keys()):
        if name not in own or not name.startswith(NEWER):
            return f"{name} is not in both"
    for name, value in given.items():
        if own[name].shape != value.shape:
            return f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
    module.load_state_dict(given, strict=False)
    return ""
