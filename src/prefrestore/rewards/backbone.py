"""Published models of the CLIP family, from a folder or the hub: read once, frozen, safetensors only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, PreTrainedModel, PreTrainedTokenizerBase, SiglipModel

from prefrestore.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation of RGB in [0, 1] (Radford et al., arXiv 2103.00020)."""
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""SigLIP's (Zhai et al., arXiv 2303.15343)."""


def read_model(who: str, place: str, family: type[PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a frozen model and its tokenizer from a folder or by its name on the hub.

    Raises:
        UserError: it is not there, is of another kind, or lacks weights; ``who`` asked for it.
    """
    kind = family.__name__
    try:
        model, info = family.from_pretrained(place, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{who}: no {kind.removesuffix('Model')} model at {place} ({reason:.120}): give a folder that "
            f"{kind}.save_pretrained wrote, or a name on the hub and a network"
        ) from None
    missing = sorted([*info["missing_keys"], *(str(row) for row in info["mismatched_keys"])])
    if missing:
        raise UserError(f"{who}: {place} is no whole {kind} ({missing[0]} is missing or misshapen): fetch it again")
    return model.eval().requires_grad_(False), tokenizer


def pixel_values(images: Tensor, model: PreTrainedModel) -> Tensor:
    """Return images [N, 3, H, W] in [0, 1] as the model's vision tower wants them."""
    side = model.config.vision_config.image_size
    sized = functional.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
    normal = (CLIP_MEAN, CLIP_STD) if isinstance(model, CLIPModel) else (SIGLIP_MEAN, SIGLIP_STD)
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in normal)
    return (sized.clamp(0, 1) - mean) / std


def text_states(texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the text tower's pooled state [N, D] of N texts; SigLIP was trained on padded ones, CLIP was not."""
    limit = model.config.text_config.max_position_embeddings
    padding = True if isinstance(model, CLIPModel) else "max_length"
    tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt")
    names = ("input_ids", "attention_mask") if isinstance(model, CLIPModel) else ("input_ids",)
    return model.text_model(**{name: tokens[name].to(model.device) for name in names}).pooler_output


@dataclass(frozen=True)
class BackboneConfig:
    """A published model and what a network on it must know.

    Attributes:
        place: folder, or name on the hub.
        digest: sha256 of its weights: a network on other weights would judge by chance.
        layers: of the vision tower.
        vision_size: numbers a place of an image is described by.
        text_size: numbers a text is described by.
    """

    place: str
    digest: str
    layers: int
    vision_size: int
    text_size: int


class Backbone:
    """The frozen model: what it sees of images at several depths, and of texts. Nothing of it is trained or saved."""

    def __init__(self, place: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer
        vision, text = model.config.vision_config, model.config.text_config
        self.config = BackboneConfig(
            place, _digest(model), vision.num_hidden_layers, vision.hidden_size, text.hidden_size
        )

    @torch.no_grad()
    def tokens(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Return the patches [N, places, D] of images [N, 3, H, W] in [0, 1] after some layers, each scaled to unit."""
        self._model.to(images.device)
        seen = self._model.vision_model(pixel_values=pixel_values(images, self._model), output_hidden_states=True)
        patches = (self._model.config.vision_config.image_size // self._model.config.vision_config.patch_size) ** 2
        # CLIP puts a token of the whole image first, SigLIP does not
        return [_unit(seen.hidden_states[depth][:, -patches:]) for depth in depths]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return what the model makes of N texts [N, D]; each different one is read once."""
        distinct = list(dict.fromkeys(texts))
        states = _unit(text_states(distinct, self._model, self._tokenizer))
        return states[[distinct.index(text) for text in texts]]


def _unit(states: Tensor) -> Tensor:
    return functional.layer_norm(states, states.shape[-1:])


def _digest(model: PreTrainedModel) -> str:
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}\0".encode() + value.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


@lru_cache(maxsize=1)
def load_backbone(place: str) -> Backbone:
    """Read a CLIP or SigLIP model; the reward and its judges share one.

    Raises:
        UserError: it is not there, or is of neither family.
    """
    from transformers import AutoConfig

    who = "train_reward: backbone"
    try:
        kind = AutoConfig.from_pretrained(place).model_type
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{who}: no model at {place} ({reason:.120}): give a folder that save_pretrained wrote, "
            "or a name on the hub and a network"
        ) from None
    families: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "siglip": SiglipModel}
    if kind not in families:
        raise UserError(f"{who}: {place} is a model of type {kind}: choose one of {' or '.join(families)}")
    return Backbone(place, *read_model(who, place, families[kind]))
