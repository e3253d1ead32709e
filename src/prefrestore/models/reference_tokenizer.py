"""The published TA-Tok as our image tokenizer. The one place that reads a pickled file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefrestore.config import TokenizerConfig
from prefrestore.errors import UserError
from prefrestore.models.reference_layout import TA_TOK, Route, empty, fill, naming, sorted_out
from prefrestore.models.tokenizer import ImageTokenizer, build_tokenizer

FEATURE_LAYER = -2
"""TA-Tok reads the hidden state one block before the last (reference-method 1.3)."""


def published_tokenizer(config: TokenizerConfig, feature_layer: int = FEATURE_LAYER) -> ImageTokenizer:
    """Return a tokenizer of TA-Tok's structure without memory for its weights."""
    return empty(lambda: build_tokenizer(config, feature_layer))


def unread_blocks(tokenizer: ImageTokenizer, prefix: str = "") -> tuple[Route, ...]:
    """Return routes that leave out the blocks above the hidden state that is read."""
    config = tokenizer.config
    tops = range(config.layers + 1 + config.feature_layer, config.layers)
    return tuple(Route(f"{prefix}encoder.encoder.layers.{block}.") for block in tops)


def convert_tokenizer(file: Path, config: TokenizerConfig) -> ImageTokenizer:
    """Read the published ``ta_tok.pth``.

    Args:
        file: a dictionary with ``model.args`` (constructor arguments) and ``model.sd`` (weights).
        config: sizes.

    Raises:
        UserError: the file is no such dictionary, or its weights do not have these sizes.
    """
    arguments, weights = _read(file)
    for name, value in {"input_size": config.image_size, "select_layer_id": FEATURE_LAYER, "pool_scale": 1}.items():
        if arguments.get(name, value) != value:
            raise UserError(f"{file}: model.args.{name} is {arguments[name]!r}, only {value!r} is supported here")
    tokenizer = published_tokenizer(config)
    tensors = sorted_out(weights, (*unread_blocks(tokenizer), *TA_TOK), str(file)).get("image_tokenizer", {})
    return fill(tokenizer, tensors, naming("image_tokenizer", TA_TOK), str(file))


def _read(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    try:
        model = torch.load(file, map_location="cpu", weights_only=True)["model"]
        arguments, weights = model["args"], model["sd"]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: name the published ta_tok.pth") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: is no TA-Tok file ({reason:.120}): name the published ta_tok.pth") from None
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file}: model.sd holds something that is no tensor: name the published ta_tok.pth")
    return arguments, weights


def load_tokenizer(folder: str) -> ImageTokenizer:
    """Load a converted tokenizer from its folder or, by name, from the hub.

    Raises:
        UserError: there is none.
    """
    try:
        return ImageTokenizer.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train_codec.tokenizer.weights: {folder}: no image tokenizer can be loaded ({reason:.120}): "
            "make the folder with `prefrestore model convert tokenizer`"
        ) from None
