"""Names of published weights (reference-method 7.2) beside ours, and the filling of a model from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from prefrestore.errors import UserError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Route:
    """Published names that begin with ``published`` are those of ``component``, beginning with ``ours``.

    An empty component means that nothing of it is needed here.
    """

    published: str
    component: str = ""
    ours: str = ""


TA_TOK = (
    Route("encoder.head."),
    Route("encoder.embeddings.position_ids"),
    Route("encoder.", "image_tokenizer", "vision_tower."),
    Route("encode_task_layer.0.", "image_tokenizer", "task_layer."),
    Route("bottleneck.in_linear.", "image_tokenizer", "in_linear."),
    Route("bottleneck.regularizer.embedding.", "image_tokenizer", "codebook."),
    Route("bottleneck.regularizer.embedding_proj.", "image_tokenizer", "codebook_projection."),
    Route("bottleneck.out_linear."),
    Route("decoder."),
    Route("decode_task_layer."),
    Route("scale_layer."),
    Route("teacher"),
)
"""TA-Tok alone: what rebuilds features from codes, what taught it, and the input scaling (ours is fixed) stay away."""

TOWER = "model.vision_tower.vision_tower."

STAGE_A = (
    Route("lm_head.", "integrator", "lm_head."),
    Route("model.embed_tokens.", "integrator", "model.embed_tokens."),
    Route("model.layers.", "integrator", "model.layers."),
    Route("model.norm.", "integrator", "model.norm."),
    *(Route(TOWER + route.published, route.component, route.ours) for route in TA_TOK),
    Route("model.sana.", "generator", "transformer."),
    Route("model.sana_vae.encoder.", "lq_encoder", "encoder."),
    Route("model.sana_vae.decoder.", "codec", "decoder."),
    Route("fixed_vae.encoder.", "codec", "encoder."),
    Route("fixed_vae.decoder."),
    Route("model.diffusion_connector.", "connectors", "diffusion_connector."),
    Route("model.vae_connector.", "connectors", "vae_connector."),
)
"""A whole Stage-A checkpoint. ``sana_vae.encoder`` was trained to see LQ images; ``fixed_vae`` is the clean codec."""


def route(name: str, routes: Iterable[Route]) -> tuple[str, str] | None:
    """Return component and our name of a published name; an empty component if it is not needed; None if unknown."""
    name = name.replace("encoder.vision_model.", "encoder.")
    for one in routes:
        if name.startswith(one.published):
            return one.component, one.ours + name.removeprefix(one.published)
    return None


def naming(component: str, routes: Iterable[Route]) -> Callable[[str], str]:
    """Return the function from our names in a component to the published ones, for messages."""

    def published(ours: str) -> str:
        for one in routes:
            if one.component == component and ours.startswith(one.ours):
                return one.published + ours.removeprefix(one.ours)
        return f"{component}.{ours}"

    return published


def sorted_out(weights: Mapping[str, Tensor], routes: Iterable[Route], where: str) -> dict[str, dict[str, Tensor]]:
    """Return the tensors that are needed, by component and our name.

    Raises:
        UserError: there is a name that no published checkpoint has.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name in weights:
        place = route(name, routes)
        if place is None:
            raise UserError(f"{where}: {name} is unexpected: name a checkpoint of the published layout")
        component, ours = place
        if component:
            found.setdefault(component, {})[ours] = weights[name]
    return found


def empty(build: Callable[[], M]) -> M:
    """Build a model whose parameters take no memory yet; its buffers are real."""
    with init_empty_weights(include_buffers=False):
        return build()


def fill(module: M, tensors: Mapping[str, Tensor], name_of: Callable[[str], str], where: str) -> M:
    """Give a model its tensors, as they are stored, and set it up for inference.

    Args:
        module: the model, perhaps built by :func:`empty`.
        tensors: by the model's names.
        name_of: the published name of one of the model's, for messages.
        where: the checkpoint, for messages.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    for name, parameter in wanted.items():
        if name not in tensors:
            raise UserError(f"{where}: {name_of(name)} is missing: name a whole checkpoint of the published layout")
        if tensors[name].shape != parameter.shape:
            found, expected = tuple(tensors[name].shape), tuple(parameter.shape)
            raise UserError(
                f"{where}: {name_of(name)} has the shape {found}, the configuration expects {expected}: "
                "name the preset that the checkpoint was made with"
            )
    for name in tensors:
        if name not in wanted:
            raise UserError(
                f"{where}: {name_of(name)} is unexpected: name the preset that the checkpoint was made with"
            )
    # copies: tensors read from a file lie in it, at places that some kernels round differently at
    module.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal at the lower of both precisions."""
    low = min(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    return one.shape == other.shape and torch.equal(one.to(low), other.to(low))
