"""Adapters of others: a folder with PEFT's two files, ours with the base's digest beside them or a published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.models.adapters import CARD, CONFIG, WEIGHTS, attach, load_policy, read_adapter
from prefrestore.models.weight_files import refuse_pickles

if TYPE_CHECKING:
    from prefrestore.models.pipeline import PrefRestorePipeline

PUBLISHED_FOLDER = "lora"
"""Where a published checkpoint keeps its adapter; a second one, of the old policy, lies in ``lora/old``."""


def load_adapter(pipeline: PrefRestorePipeline, folder: Path) -> None:
    """Put the adapter of a folder on a pipeline and let it act.

    A policy of ours names its base by digest. A published adapter names none: it must have every tensor that its
    targets need here, in their shapes, and change something (reference-method 4.2, 7.2).

    Raises:
        UserError: there is none, it is pickled, was made for another base, does not fit or has no effect.
    """
    if getattr(pipeline.generator.transformer, "peft_config", None):
        raise UserError(f"{folder}: an adapter is loaded already: unload_lora_weights() first")
    place = _place(folder)
    if (place / CARD).is_file():
        base = Path(str(pipeline.name_or_path or ""))
        if not pipeline.name_or_path or not base.is_dir():
            raise UserError(
                f"{place}: names its base by digest, this pipeline has no folder: load the base from its own"
            )
        load_policy(pipeline, place, artifacts.digest(base))
        return
    tensors, config = read_adapter(place)
    if not any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name):
        raise UserError(f"{place}: the adapter was never trained and changes nothing: name a trained one")
    attach(pipeline, tensors, config, place)


def _place(folder: Path) -> Path:
    for place in (folder, folder / PUBLISHED_FOLDER):
        if (place / CONFIG).is_file():
            if not (place / WEIGHTS).is_file():
                refuse_pickles(place)
                raise UserError(f"{place}: holds no adapter ({WEIGHTS} is missing): fetch the folder again")
            return place
    raise UserError(f"{folder}: holds no adapter ({CONFIG} is missing): name a policy, or the published `lora` folder")
