"""Checks of a saved pipeline's folder: what diffusers would load with a warning, or fill with noise, is refused."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from prefrestore.errors import UserError
from prefrestore.models.weight_files import WeightFiles, open_weights, refuse_pickles

INDEX = "model_index.json"
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
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: is no saved pipeline ({INDEX} is missing or damaged): name its folder") from None
    if found != class_name:
        raise UserError(f"{folder}: holds a {found}, not a {class_name}: name the folder of a restorer")
    for name in (name for name, value in index.items() if isinstance(value, list)):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: {name} is missing: the pipeline is not whole, save or fetch it again")
        refuse_pickles(folder / name)


def check_weights(folder: Path, component: str, module: nn.Module) -> None:
    """Raise unless every weight of a loaded component stood in its folder.

    Raises:
        UserError: names the first one that did not.
    """
    stored = _weights(folder / component)
    seen: set[int] = set()
    for name, value in module.state_dict().items():
        known = value.data_ptr() in seen  # tied weights are stored once
        seen.add(value.data_ptr())
        if name not in stored and not known:
            raise UserError(f"{folder / component}: {name} is missing: save or fetch the pipeline again")


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
