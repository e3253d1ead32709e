"""Checks of a saved pipeline's folder: what diffusers would load with a warning, or fill with noise, is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from prefrestore.errors import UserError
from prefrestore.models.weight_files import WeightFiles, open_weights, refuse_not_finite, refuse_pickles

INDEX = "model_index.json"
MAX_SIZE, MAX_LAYERS = 1_000_000, 1_000
"""Vocabularies and contexts are the largest sizes; the largest models have some hundred layers."""
MAX_STEPS = 10_000
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call a component's weights."""


def check_folder(folder: Path, class_name: str) -> None:
    """Raise unless a folder holds a pipeline of this class, whole, with weights that run no code.

    Raises:
        UserError: it does not.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder}: is no saved pipeline ({INDEX} is missing or damaged): name its folder") from None
    if found != class_name:
        raise UserError(f"{folder}: holds a {found}, not a {class_name}: name the folder of a restorer")
    for name in (name for name, value in index.items() if isinstance(value, list)):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: {name} is missing: the pipeline is not whole, save or fetch it again")
        refuse_pickles(folder / name)
        _check_sizes(folder / name / "config.json")


def _check_sizes(path: Path) -> None:
    """Raise where settings ask for more than any model has: building it would take all memory before weights are read.

    Raises:
        UserError: the file is damaged, or a number in it is too large.
    """
    try:
        waiting = [("", json.loads(path.read_text(encoding="utf-8")))] if path.is_file() else []
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: is damaged: save or fetch the pipeline again") from None
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((name, one) for one in value)
        elif isinstance(value, int) and abs(value) > (MAX_LAYERS if "layers" in name else MAX_SIZE):
            raise UserError(f"{path}: {name} is {value:.4g}, more than any model has: save or fetch the pipeline again")


def check_integrator(folder: Path) -> None:
    """Raise unless the settings of a pipeline's integrator call for the weights that are stored.

    transformers takes a missing setting to be that of a model with eight billion weights, and makes up those that are
    not stored.

    Raises:
        UserError: names the first weight that is missing or has another shape.
    """
    stored, config = _weights(folder), Qwen3Config.from_pretrained(str(folder))
    with init_empty_weights():
        called_for = Qwen3ForCausalLM(config).state_dict()
    for name, value in called_for.items():
        found = stored.shape(name) if name in stored else ()
        if found != tuple(value.shape) and not (name == "lm_head.weight" and config.tie_word_embeddings):
            shapes = f"stored as {list(found)}, its settings call for {list(value.shape)}" if found else "is missing"
            raise UserError(f"{folder}: {name} {shapes}: save or fetch the pipeline again")


def check_weights(folder: Path, component: str, module: nn.Module) -> None:
    """Raise unless every weight of a loaded component stood in its folder and is a number.

    Raises:
        UserError: names the first one that did not, or is none.
    """
    stored = _weights(folder / component)
    seen: set[int] = set()
    for name, value in module.state_dict().items():
        known = value.data_ptr() in seen  # tied weights are stored once
        seen.add(value.data_ptr())
        if name not in stored and not known:
            raise UserError(f"{folder / component}: {name} is missing: save or fetch the pipeline again")
    refuse_not_finite(module.state_dict().items(), folder / component)


def check_settings(folder: str, steps: Any, guidance: Any, tokenizer: Any) -> None:
    """Raise unless the settings of a loaded pipeline can be sampled with.

    Raises:
        UserError: names the one that cannot.
    """
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise UserError(f"{folder}: sampler_steps is {steps!r:.40}: write a number from 1 to {MAX_STEPS} into {INDEX}")
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise UserError(f"{folder}: guidance is {guidance!r:.40}: write a number into {INDEX}")
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise UserError(f"{folder}: text_tokenizer has no padding token: save or fetch the pipeline again")


def _weights(folder: Path) -> WeightFiles:
    stems = [stem for stem in STEMS if list(folder.glob(f"{stem}*.safetensors*"))]
    return open_weights(folder, stems[0] if stems else STEMS[0])


def own_memory(module: nn.Module) -> None:
    """Copy weights out of the file they were read from.

    Where they lie in it, their place in memory differs from that of weights that were computed, and some kernels
    round differently there: a pipeline that was saved and loaded would not repeat its pictures to the bit.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
