"""Checks of a saved pipeline's folder: what diffusers would load with a warning, or fill with noise, is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prefrestore.errors import UserError
from prefrestore.models.weight_files import WeightFiles, open_weights, refuse_pickles

INDEX = "model_index.json"
MAX_SIZE, MAX_LAYERS = 1_000_000, 1_000
"""Vocabularies and contexts are the largest sizes; the largest models have some hundred layers in all."""
MAX_STEPS = 10_000
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call a component's weights."""


def check_folder(folder: Path, kind: type[Any], parts: Mapping[str, type[Any]]) -> None:
    """Raise unless a folder holds a pipeline of a kind, whole, that names no class but its parts' and runs no code.

    Raises:
        UserError: it does not.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder}: is no saved pipeline ({INDEX} is missing or damaged): name its folder") from None
    if found != kind.__name__:
        raise UserError(f"{folder}: holds a {found}, not a {kind.__name__}: name the folder of a restorer")
    for name, part in parts.items():
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: {name} is missing: the pipeline is not whole, save or fetch it again")
        _check_class(path, name, part, index.get(name))
        refuse_pickles(folder / name)
        _check_sizes(folder / name / "config.json")
    foreign = [name for name, value in index.items() if isinstance(value, list) and name not in parts]
    if foreign:
        raise UserError(f"{path}: {foreign[0]:.40} is no part of a {kind.__name__}: save or fetch the pipeline again")


def _check_class(path: Path, name: str, part: type[Any], listed: Any) -> None:
    """Raise unless the index names a part's class: diffusers imports whatever program stands there."""
    library = part.__module__.partition(".")[0]
    program, name_of = listed if isinstance(listed, list) and len(listed) == 2 else ("", "")
    named = program in (library, part.__module__) and isinstance(name_of, str)
    if not named or (issubclass(part, nn.Module) and name_of != part.__name__):  # tokenizers have many names
        raise UserError(f"{path}: {name} is no {part.__name__} of {library}: save or fetch the pipeline again")


def _check_sizes(path: Path) -> None:
    """Raise where settings ask for more than any model has, or for what is no number.

    Raises:
        UserError: the file is damaged, or a number in it is too large.
    """
    try:
        waiting = [("", json.loads(path.read_text(encoding="utf-8")))] if path.is_file() else []
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: is damaged: save or fetch the pipeline again") from None
    layers = 0
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((name, one) for one in value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: {name!r:.40} is {value}, no number: save or fetch the pipeline again")
        elif isinstance(value, int):
            layers += abs(value) if "layer" in name else 0
            if abs(value) > MAX_SIZE or layers > MAX_LAYERS:
                more = f"{name!r:.40} is {value!r:.20}, more than any model has"
                raise UserError(f"{path}: {more}: save or fetch the pipeline again")
        if isinstance(value, dict | list) and len(value) > MAX_LAYERS:
            raise UserError(f"{path}: {name!r:.40} lists more than any model has: save or fetch the pipeline again")


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


def stored_weights(folder: Path) -> WeightFiles:
    """Open the weights of a component.

    Raises:
        UserError: there are none, or they are damaged.
    """
    stems = [stem for stem in STEMS if list(folder.glob(f"{stem}*.safetensors*"))]
    return open_weights(folder, stems[0] if stems else STEMS[0])


def forget_places(folder: Path) -> None:
    """Strike from a saved pipeline's settings where it was loaded from: equal pipelines are equal files anywhere."""
    for path in (folder / INDEX, *folder.glob("*/config.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def own_memory(module: nn.Module) -> None:
    """Copy weights out of the file they were read from.

    Where they lie in it, their place in memory differs from that of weights that were computed, and some kernels
    round differently there: a pipeline that was saved and loaded would not repeat its pictures to the bit.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
