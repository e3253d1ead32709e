"""Policies as low-rank adapters on one frozen base (PEFT): ``policy``, ``old``, ``ema``; ``ref`` is the base itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import peft
import torch
from diffusers import SanaTransformer2DModel
from peft.functional import cast_adapter_dtype, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefrestore import artifacts
from prefrestore.config import LoraConfig
from prefrestore.errors import UserError
from prefrestore.models.weight_files import refuse_not_finite
from prefrestore.runtime.seeding import derive

if TYPE_CHECKING:
    from prefrestore.models.pipeline import PrefRestorePipeline

Role = Literal["policy", "old", "ema", "ref"]
TRAINED_ROLES: tuple[Role, ...] = ("policy", "old", "ema")
ATTENTION = tuple(f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0"))
"""The linear layers of every block that carry an adapter (reference-method 4.1)."""
SPATIAL_PATH = ("gain.0", "gain.2")
"""Those of our spatial path: how strongly a restoration follows its noise and the LQ latent at each noise level."""
TARGETS = ATTENTION + SPATIAL_PATH
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "policy.json"
KEY_PREFIX = "base_model.model."
"""What a ``PeftModel`` puts before the names of the model it wraps; files carry it, so that PEFT reads them."""
VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "megatron_config")
"""Settings of PEFT that make an adapter more than a low-rank term, or import other programs."""


def _peft_config(lora: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=list(TARGETS),
    )


def add_roles(pipeline: PrefRestorePipeline, lora: LoraConfig, seed: int) -> None:
    """Freeze the pipeline and put the adapters of all trained roles on its transformer, equal and without effect yet.

    Adapters are float32 whatever the base is: small updates would be lost in bfloat16 (reference-method 6.2, Q11).
    """
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    transformer = pipeline.generator.transformer
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT wonders about more than one adapter on a model
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        torch.manual_seed(derive("adapter", seed))
        for role in TRAINED_ROLES:
            _add(transformer, _peft_config(lora), role)
    weights = role_tensors(pipeline, "policy")
    set_role(pipeline, "old", weights)
    set_role(pipeline, "ema", weights)
    transformer.requires_grad_(False)
    for value in policy_parameters(pipeline):
        value.requires_grad_(True)
    _activate(transformer, "policy")


def _add(transformer: SanaTransformer2DModel, config: peft.LoraConfig, role: Role) -> None:
    transformer.add_adapter(config, adapter_name=role)
    cast_adapter_dtype(transformer, role, autocast_adapter_dtype=True)


def role_tensors(pipeline: PrefRestorePipeline, role: Role) -> dict[str, Tensor]:
    """Return a role's weights by name (without the role in it); they share memory with the model."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(pipeline.generator.transformer, adapter_name=role)
    return tensors


def set_role(pipeline: PrefRestorePipeline, role: Role, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights, named as :func:`role_tensors` names them, into a role."""
    own = role_tensors(pipeline, role)
    if own.keys() != tensors.keys():
        raise ValueError(f"weights of other layers for role {role}: {sorted(own.keys() ^ tensors.keys())[:3]}")
    for name, value in own.items():
        value.copy_(tensors[name])


def policy_parameters(pipeline: PrefRestorePipeline) -> list[nn.Parameter]:
    """Return the trainable parameters, in a fixed order."""
    return [value for name, value in pipeline.generator.transformer.named_parameters() if ".policy." in name]


def _activate(transformer: nn.Module, role: Role) -> None:
    """Let ``role`` act; what is trainable stays so (PEFT's own switch would change it)."""
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            trainable = [(value, value.requires_grad) for value in layer.parameters()]
            layer.enable_adapters(role != "ref")
            if role != "ref":
                layer.set_adapter([role], inference_mode=True)
            for value, flag in trainable:
                value.requires_grad_(flag)


@contextmanager
def using_role(pipeline: PrefRestorePipeline, role: Role) -> Iterator[None]:
    """Let the generator act as ``role`` within the block; ``policy`` acts outside of it."""
    transformer = pipeline.generator.transformer
    _activate(transformer, role)
    try:
        yield
    finally:
        _activate(transformer, "policy")


def save_policy(folder: Path, tensors: Mapping[str, Tensor], lora: LoraConfig, base_digest: str) -> None:
    """Write an adapter in PEFT's format, and ``policy.json`` that names its base, into an existing folder.

    PEFT's own writer puts the layer names into the file in an order that changes from run to run.
    """
    stored = {f"{KEY_PREFIX}{name}": value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    fields = {
        key: sorted(value) if isinstance(value, set) else value for key, value in _peft_config(lora).to_dict().items()
    }
    artifacts.write_json(folder / CONFIG, {**fields, "target_modules": sorted(TARGETS), "inference_mode": True})
    artifacts.write_json(folder / CARD, {"base_digest": base_digest})


def load_policy(pipeline: PrefRestorePipeline, folder: Path, base_digest: str) -> None:
    """Put the adapter of an artifact ``policy`` on a pipeline and let it act.

    Args:
        pipeline: the base, without adapters.
        folder: the artifact.
        base_digest: ``artifacts.digest`` of the folder the pipeline was loaded from.

    Raises:
        UserError: the folder holds no adapter, the adapter was trained on another base or does not fit this one.
    """
    tensors, config = _read_policy(folder, base_digest)
    attach(pipeline, tensors, config, folder)


def attach(pipeline: PrefRestorePipeline, tensors: Mapping[str, Tensor], config: peft.LoraConfig, folder: Path) -> None:
    """Put an adapter, read from ``folder``, on a pipeline and let it act as the policy.

    Raises:
        UserError: its tensors are not those that the configuration asks for on this base; nothing is changed then.
    """
    transformer = pipeline.generator.transformer
    transformer.requires_grad_(False)
    try:
        _refuse_ranks_not_stored(tensors, config)
        _add(transformer, config, "policy")
    except Exception as error:  # PEFT finds none of the named layers, or raises anything on damaged settings
        transformer.unload_lora()
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: the adapter does not fit this base ({reason:.100}): use its own base") from None
    own = role_tensors(pipeline, "policy")
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    wrong = sorted({(name, tuple(value.shape)) for name, value in tensors.items()} ^ set(shapes.items()))
    if wrong:
        transformer.unload_lora()
        raise UserError(f"{folder}: the adapter does not fit this base at {wrong[0][0]}: use the base it was made for")
    set_peft_model_state_dict(transformer, tensors, adapter_name="policy")
    transformer.requires_grad_(False)


def _refuse_ranks_not_stored(tensors: Mapping[str, Tensor], config: peft.LoraConfig) -> None:
    """Raise where settings ask for ranks that no tensor has: PEFT would take the memory, and then look at tensors."""
    stored = max((len(value) for name, value in tensors.items() if "lora_A" in name), default=0)
    asked = max([config.r, *config.rank_pattern.values()])
    if asked > stored:
        raise ValueError(f"its settings ask for rank {asked}, its weights have {stored}")


def _read_policy(folder: Path, base_digest: str) -> tuple[dict[str, Tensor], peft.LoraConfig]:
    missing = [name for name in (WEIGHTS, CONFIG, CARD) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: holds no adapter ({missing[0]} is missing): run align first")
    with artifacts.reading(folder / CARD):
        trained_on = str(artifacts.read_json(folder / CARD)["base_digest"])
    if trained_on != base_digest:
        raise UserError(
            f"{folder}: this adapter was trained on another base ({trained_on[:12]}, here {base_digest[:12]}): "
            "use that base, or run align again"
        )
    return read_adapter(folder)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], peft.LoraConfig]:
    """Read an adapter in PEFT's format: its tensors, by the names of the model it belongs on, and its configuration.

    Raises:
        UserError: a file is damaged or holds numbers that are not finite, or it is no plain LoRA.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: is damaged ({error}): make or fetch it again") from None
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        variants = [name for name in VARIANTS if getattr(config, name)]
    except Exception as error:  # PEFT raises anything on damaged settings
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / CONFIG}: is no LoRA configuration ({reason:.100}): make it again") from None
    refuse_not_finite(tensors.items(), folder / WEIGHTS)
    if variants:
        raise UserError(f"{folder / CONFIG}: {variants[0]} is set: only plain LoRA acts here, make the adapter without")
    return {name.removeprefix(KEY_PREFIX): value for name, value in tensors.items()}, config
