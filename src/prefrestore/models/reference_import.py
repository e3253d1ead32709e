"""A published Stage-A checkpoint as our pipeline (reference-method 7.2).

What the published model does not have, the spatial paths and the positions of condition tokens, starts at zero:
the imported pipeline computes what the published one does. Its scheduler's flow shift is not read: it has no effect
there (1.11), and the sampler here has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from prefrestore.config import IntegratorConfig, PretrainConfig
from prefrestore.errors import UserError
from prefrestore.models.connectors import Connectors, build_connectors
from prefrestore.models.generator import Generator, build_generator, spatial_gain
from prefrestore.models.integrator import CONTEXT, layout_fields
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.reference_layout import STAGE_A, TOWER, empty, fill, naming, same, sorted_out
from prefrestore.models.reference_tokenizer import unread_blocks
from prefrestore.models.text import CHAT_END, CHAT_START, PAD, Vocabulary
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.models.weight_files import open_weights

Tensors = dict[str, Tensor]
SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn_size",
}
"""Sizes in the checkpoint's ``config.json``, and their names in ours."""

LAYOUT = ("image_start_tag_id", "image_end_tag_id", "scale_start_token_id", "image_start_token_id", "num_image_tokens")
"""Its fields that decide the id layout; the others follow from them."""


@dataclass(frozen=True)
class Layout:
    """What a Stage-A folder does not say of itself.

    Attributes:
        config: sizes of integrator and generator.
        codec: structure of the codec; also the clean encoder's weights, where the folder does not bring them.
        tokenizer: structure of the image tokenizer.
        image_size: side of the images, pixels.
    """

    config: PretrainConfig
    codec: AutoencoderDC
    tokenizer: ImageTokenizer
    image_size: int

    @property
    def latent_size(self) -> int:
        """Side of a latent."""
        return int(self.image_size // self.codec.spatial_compression_ratio)


@dataclass(frozen=True)
class Checkpoint:
    """A Stage-A checkpoint: where it lies, its ``config.json``, its weights and its text tokenizer."""

    where: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    text_tokenizer: PreTrainedTokenizerFast


def import_stage_a(source: str, layout: Layout) -> PrefRestorePipeline:
    """Load a Stage-A checkpoint from its folder or, by name, from the hub.

    Raises:
        UserError: it is no such checkpoint, is damaged, or does not have these sizes.
    """
    if layout.config.integrator.text_first:
        raise UserError("pretrain.integrator.text_first: published weights read the text after the image: set false")
    if layout.config.generator.text_modulation:
        raise UserError("pretrain.generator.text_modulation: published weights know text by queries alone: set false")
    folder = Path(source) if Path(source).is_dir() else _fetched(source)
    settings = _read_settings(folder)
    vocabulary = Vocabulary(layout.config.integrator.text_vocabulary, layout.tokenizer.config.codebook_size)
    _check_settings(settings, layout.config.integrator, vocabulary, str(folder / "config.json"))
    text_tokenizer = read_text_tokenizer(folder, vocabulary.text_size)
    return assemble(Checkpoint(str(folder), settings, open_weights(folder), text_tokenizer), layout)


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source}: is no folder, and the hub gives none of that name ({reason:.120}): check the name"
        ) from None


def _read_settings(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: is no Stage-A folder (config.json is missing): name the published folder") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}): fetch the file again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings: fetch the file again")
    return settings


def _check_settings(settings: Mapping[str, Any], config: IntegratorConfig, vocabulary: Vocabulary, where: str) -> None:
    """Raise unless the checkpoint says of itself what the configuration says of it."""
    expected: dict[str, Any] = {name: getattr(config, ours) for name, ours in SIZES.items()}
    expected |= {name: layout_fields(vocabulary)[name] for name in LAYOUT}
    for name, value in expected.items():
        if name not in settings:
            raise UserError(f"{where}: {name} is missing: name a folder of the published layout")
        if settings[name] != value:
            raise UserError(f"{where}: {name} is {settings[name]}, the configuration expects {value}: name its preset")


def rope_theta(settings: Mapping[str, Any], where: str) -> float:
    """Return the base of the rotary code; it was written in two places over time.

    Raises:
        UserError: it is in neither.
    """
    nested = settings.get("rope_parameters") or {}
    value = settings.get("rope_theta", nested.get("rope_theta"))
    if value is None:
        raise UserError(f"{where}: rope_theta is missing: name a folder of the published layout")
    return float(value)


def read_text_tokenizer(folder: Path, size: int) -> PreTrainedTokenizerFast:
    """Read the text tokenizer without the tags and image tokens added to it: those ids are laid out by rule (1.2).

    Raises:
        UserError: ``tokenizer.json`` is missing, damaged, or has not ``size`` entries below the image tags.
    """
    path = folder / "tokenizer.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["added_tokens"] = [token for token in stored["added_tokens"] if token["id"] < size]
        tokenizer = Tokenizer.from_str(json.dumps(stored))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing: fetch the whole folder") from None
    except Exception as error:  # the library raises plain exceptions on a text it cannot use
        raise UserError(f"{path}: is no text tokenizer ({error!s:.120}): fetch the file again") from None
    found = tokenizer.get_vocab_size(with_added_tokens=True)
    if found != size:
        raise UserError(f"{path}: has {found} text tokens, the configuration expects {size}: name its preset")
    for token in (PAD, CHAT_START, CHAT_END):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{path}: {token} is missing: name a folder of the published layout")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=CHAT_END)


def assemble(checkpoint: Checkpoint, layout: Layout) -> PrefRestorePipeline:
    """Put a checkpoint's weights, as they are stored, into a pipeline.

    Raises:
        UserError: a weight is missing, unexpected or of another shape; the message names it.
    """
    routes = (*unread_blocks(layout.tokenizer, TOWER), *STAGE_A)
    parts = sorted_out(checkpoint.weights, routes, checkpoint.where)

    def filled(component: str, module: Any, tensors: Tensors) -> Any:
        return fill(module, tensors, naming(component, STAGE_A), checkpoint.where)

    config, found = layout.config, {name: parts.get(name, {}) for name in _COMPONENTS}
    codec = empty(lambda: AutoencoderDC.from_config(layout.codec.config))
    lq_encoder = empty(lambda: LqEncoder.from_codec(codec))
    connector_tensors, shared = _connector_tensors(found["connectors"])
    integrator = empty(lambda: Qwen3ForCausalLM(_qwen3_config(checkpoint, layout)))
    query_size = config.integrator.hidden_size
    generator = empty(
        lambda: build_generator(config.generator, codec.config.latent_channels, layout.latent_size, query_size)
    )
    connectors = empty(
        lambda: build_connectors(
            config.generator,
            query_size,
            layout.tokenizer.grid,
            (codec.config.latent_channels, layout.latent_size),
            shared_norm=shared,
        )
    )
    tokenizer = empty(lambda: ImageTokenizer.from_config(layout.tokenizer.config))
    pipeline = PrefRestorePipeline(
        codec=filled("codec", codec, _codec_tensors(found["codec"], layout.codec, checkpoint.where)),
        lq_encoder=filled("lq_encoder", lq_encoder, found["lq_encoder"]),
        image_tokenizer=filled("image_tokenizer", tokenizer, found["image_tokenizer"]),
        text_tokenizer=checkpoint.text_tokenizer,
        integrator=filled("integrator", integrator, _integrator_tensors(found["integrator"], integrator, checkpoint)),
        connectors=filled("connectors", connectors, _with_places(connector_tensors, connectors)),
        generator=filled("generator", generator, _with_spatial_path(found["generator"], generator)),
        sampler_steps=config.sampler_steps,
    )
    if integrator.config.tie_word_embeddings:
        integrator.tie_weights()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_COMPONENTS = ("codec", "lq_encoder", "image_tokenizer", "integrator", "connectors", "generator")


def _qwen3_config(checkpoint: Checkpoint, layout: Layout) -> Qwen3Config:
    settings = checkpoint.settings
    vocabulary = Vocabulary(layout.config.integrator.text_vocabulary, layout.tokenizer.config.codebook_size)
    return Qwen3Config(
        **{name: settings[name] for name in SIZES},
        **layout_fields(vocabulary),
        vocab_size=vocabulary.size,
        rms_norm_eps=settings.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta(settings, checkpoint.where)},
        # trained on sequences of at most this length, whatever the text model it came from could see
        max_position_embeddings=min(CONTEXT, settings.get("max_position_embeddings", CONTEXT)),
        tie_word_embeddings=_is_tied(checkpoint, vocabulary.size),
    )


def _is_tied(checkpoint: Checkpoint, rows: int) -> bool:
    """Tell whether head and embedding are one; a stored head may be a copy of the embedding.

    Raises:
        UserError: they differ although the checkpoint says that they are tied.
    """
    embedding, head = (checkpoint.weights.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    if embedding is None or head is None or same(embedding[:rows], head[:rows]):
        return True
    if checkpoint.settings.get("tie_word_embeddings", False):
        raise UserError(f"{checkpoint.where}: lm_head.weight differs from the embedding it is tied to: fetch it again")
    return False


def _integrator_tensors(tensors: Tensors, integrator: Qwen3ForCausalLM, checkpoint: Checkpoint) -> Tensors:
    """Return the tensors without the row of the image placeholder, which a run may leave behind; and a head."""
    rows = integrator.config.vocab_size
    cut = {name: value[:rows] if len(value) == rows + 1 else value for name, value in tensors.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors and len(tensors[name]) not in (rows, rows + 1):
            raise UserError(
                f"{checkpoint.where}: {name} has {len(tensors[name])} rows, the vocabulary has {rows}: name its preset"
            )
    if integrator.config.tie_word_embeddings and "model.embed_tokens.weight" in cut:
        cut["lm_head.weight"] = cut["model.embed_tokens.weight"]
    return cut


def _codec_tensors(tensors: Tensors, clean: AutoencoderDC, where: str) -> Tensors:
    """Return decoder and clean encoder: the checkpoint's ``fixed_vae`` if it has one, else the codec that was given.

    ``sana_vae.encoder`` is none: it was trained to see HQ in LQ.
    """
    if any(name.startswith("encoder.") for name in tensors):
        return tensors
    given = {f"encoder.{name}": value for name, value in clean.encoder.state_dict().items()}
    if any(value.is_meta for value in given.values()) and not all(value.is_meta for value in tensors.values()):
        raise UserError(f"{where}: holds no clean codec (fixed_vae.encoder): name one with --codec")
    return {**tensors, **given}


def _connector_tensors(tensors: Tensors) -> tuple[Tensors, bool]:
    """Return the connectors' tensors, and whether both end in the same norm (reference-method 1.6)."""
    queries, lq = tensors.get("diffusion_connector.3.weight"), tensors.get("vae_connector.3.weight")
    shared = lq is None or (queries is not None and not lq.is_meta and same(queries, lq))
    return {name: value for name, value in tensors.items() if not (shared and name == "vae_connector.3.weight")}, shared


def _with_places(tensors: Tensors, connectors: Connectors) -> Tensors:
    """Add what the published connectors do not have, at zero: positions of tokens, the path of the queries."""
    like = tensors.get("diffusion_connector.3.weight", torch.empty(0))
    added = [name for name in connectors.state_dict() if name.startswith(("position_projection.", "placement."))]
    zeros = {name: torch.zeros(connectors.get_parameter(name).shape, dtype=like.dtype) for name in added}
    return {**tensors, **zeros}


def _with_spatial_path(tensors: Tensors, generator: Generator) -> Tensors:
    """Widen the patch embedding by channels that see the LQ latent with weight zero, and add the gain."""
    patch = tensors.get("transformer.patch_embed.proj.weight")
    if not generator.config.spatial_path or patch is None:
        return tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gain = spatial_gain(generator.config.latent_channels).to(patch.dtype)
    added = {f"transformer.gain.{name}": value for name, value in gain.state_dict().items()}
    wide = torch.cat([patch, torch.zeros_like(patch)], 1)
    return {**tensors, "transformer.patch_embed.proj.weight": wide, **added}
