"""A saved pipeline rehearsed on torch's device ``meta``, where tensors have shapes and take no memory.

Libraries build what settings call for, and only then look at what is stored: a missing number can stand for eight
billion weights. Parts that each load may still not fit together, which shows when the first picture is restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import ConfigMixin
from torch import nn

from prefrestore.errors import UserError
from prefrestore.models.integrator import text_size_of, vocabulary_of
from prefrestore.models.pipeline_files import stored_weights

if TYPE_CHECKING:
    from prefrestore.models.pipeline import PrefRestorePipeline

M = TypeVar("M", bound=nn.Module)
MAX_SIDE = 4096
"""Pixels along an image: what the largest published generators of this kind make."""


def skeleton(kind: type[M], folder: Path) -> M:
    """Return what the settings in a folder call for, without memory.

    Raises:
        UserError: names the first weight that is not stored, or in another shape, or that has no use.
    """
    made: Any = kind  # each of both libraries has its own way from settings to a model
    with torch.device("meta"):
        if issubclass(kind, ConfigMixin):
            part = made.from_config(made.load_config(str(folder)))
        else:
            part = made(made.config_class.from_pretrained(str(folder)))
    stored = stored_weights(folder)
    called_for = part.state_dict(keep_vars=True)
    tied = {id(value) for name, value in part.named_parameters(remove_duplicate=False) if name in stored}
    for name, value in called_for.items():
        found = stored.shape(name) if name in stored else None
        if found is None and id(value) not in tied:  # tied weights are stored once
            raise UserError(f"{folder}: {name} is missing: save or fetch the pipeline again")
        if found not in (None, tuple(value.shape)):
            asked = f"{list(found or ())}, its settings call for {list(value.shape)}"
            raise UserError(f"{folder}: {name} is stored as {asked}: save or fetch the pipeline again")
    for name in sorted(stored.keys() - called_for.keys()):
        raise UserError(f"{folder}: {name} is stored, and its settings call for none: save or fetch the pipeline again")
    return part


def skeletons(folder: Path, parts: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Return the parts of a saved pipeline as skeletons, and None for those that are no models.

    Raises:
        UserError: as :func:`skeleton`.
    """
    return {
        name: skeleton(kind, folder / name) if issubclass(kind, nn.Module) else None for name, kind in parts.items()
    }


@torch.no_grad()
def rehearse(pipeline: PrefRestorePipeline) -> None:
    """Let a pipeline of skeletons restore a picture without pixels.

    Raises:
        Exception: its parts do not fit together; libraries raise anything.
    """
    side, tokenizer, integrator = pipeline.image_size, pipeline.image_tokenizer, pipeline.integrator
    _expect(0 < side <= MAX_SIDE, f"images of {side} pixels, more than the {MAX_SIDE} of any model")
    seen = tokenizer.config.image_size
    _expect(0 < seen <= MAX_SIDE, f"images of {seen} pixels for the tokenizer, more than the {MAX_SIDE} of any model")
    vocabulary, rows = vocabulary_of(integrator), integrator.config.vocab_size
    _expect(vocabulary.text_size > 0 and vocabulary.num_codes > 0, "no text or no image codes")
    _expect(vocabulary.size <= rows, f"ids up to {vocabulary.size} in a vocabulary of {rows}")
    codes = tokenizer.config.codebook_size
    _expect(codes == vocabulary.num_codes, f"{codes} image codes, and {vocabulary.num_codes} ids for them")
    with torch.device("meta"):
        lq, latent = torch.empty(1, 3, side, side), (1, *pipeline.latent_shape)
        tokens = tokenizer.encode(torch.empty(1, 3, seen, seen))
        _expect(tokens.shape[1] == tokenizer.num_tokens, "a grid that its image does not fill")
        ids = torch.empty(1, tokenizer.num_tokens + 1, dtype=torch.long)
        _expect(ids.shape[1] <= integrator.config.max_position_embeddings, "a context shorter than an image")
        masks = dict.fromkeys(integrator.config.layer_types)  # given, so that none is made: that looks at numbers
        states = integrator.model(input_ids=ids, attention_mask=masks, use_cache=False).last_hidden_state
        spatial = pipeline.lq_encoder(lq)
        _expect(spatial.shape == latent, f"latents {list(spatial.shape)} of LQ images, {list(latent)} of the generator")
        condition = pipeline.join(states, spatial, torch.empty(1, text_size_of(states.shape[-1])))
        velocity = pipeline.velocity_function(condition)(torch.empty(latent), torch.empty(1))
        image = pipeline.decode(velocity)
        _expect(image.shape == lq.shape, f"images {list(image.shape)} where {list(lq.shape)} are expected")


def rehearse_text(pipeline: PrefRestorePipeline) -> None:
    """Let a pipeline write a prompt.

    Raises:
        Exception: its texts and its integrator do not fit together; libraries raise anything.
    """
    largest, known = max(pipeline.text_tokenizer.get_vocab().values(), default=0), vocabulary_of(pipeline.integrator)
    _expect(largest < known.text_size, f"text ids up to {largest} where {known.text_size} are known")
    pipeline.prompts(torch.zeros(1, pipeline.image_tokenizer.num_tokens, dtype=torch.long), ["a face"])


def _expect(fits: bool, otherwise: str) -> None:
    if not fits:
        raise ValueError(f"its settings call for {otherwise}")
