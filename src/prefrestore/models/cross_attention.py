"""Cross-attention of ``SanaTransformer2DModel`` over keys and values computed once per condition.

At 986 condition tokens, projecting them is 40 % of a forward (reference-method 1.7), yet it depends on the condition
and the acting adapter alone. Modules, weights and their names stay those of diffusers and PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from prefrestore.models.condition import KeysValues, samples_per_row


class CachedAttnProcessor(SanaAttnProcessor2_0):
    """diffusers' own processor that, besides captions [B, T, D], takes finished keys and values of N conditions.

    Where B is K times N, each condition serves K samples in a row: their queries are laid end to end, so that keys
    and values are never copied.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | KeysValues | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output [B, L, D]."""
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
        key, value = encoder_hidden_states
        query = attn.to_q(hidden_states)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        samples_per_row(len(key), len(query))
        query = query.reshape(len(key), -1, attn.heads, key.shape[-1]).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(hidden_states.shape[0], hidden_states.shape[1], -1)
        return attn.to_out[1](attn.to_out[0](attended.to(hidden_states.dtype))) / attn.rescale_output_factor


def install(transformer: SanaTransformer2DModel) -> None:
    """Let the transformer's cross-attention take finished keys and values."""
    for block in transformer.transformer_blocks:
        block.attn2.set_processor(CachedAttnProcessor())


def project_captions(transformer: SanaTransformer2DModel, tokens: Tensor) -> Tensor:
    """Return captions [N, T, D] of condition tokens [N, T, caption_size]."""
    return transformer.caption_norm(transformer.caption_projection(tokens))


def base_keys_values(transformer: SanaTransformer2DModel, captions: Tensor) -> tuple[KeysValues, ...]:
    """Return every block's keys and values [N, T, D] without adapters, before the norm of the keys."""
    attentions = [block.attn2 for block in transformer.transformer_blocks]
    return tuple((_base(attn.to_k)(captions), _base(attn.to_v)(captions)) for attn in attentions)


def role_keys_values(
    transformer: SanaTransformer2DModel, captions: Tensor, base: Sequence[KeysValues]
) -> tuple[KeysValues, ...]:
    """Add the acting adapters' low-rank terms and shape for attention: [N, heads, T, head_dim]; gradients flow."""
    return tuple(
        _shaped(block.attn2, _adapted(block.attn2.to_k, key, captions), _adapted(block.attn2.to_v, value, captions))
        for block, (key, value) in zip(transformer.transformer_blocks, base, strict=True)
    )


def _shaped(attn: Attention, key: Tensor, value: Tensor) -> KeysValues:
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    keys, values = (whole.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for whole in (key, value))
    return keys, values


def _base(layer: nn.Module) -> nn.Module:
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def _adapted(layer: nn.Module, base: Tensor, inputs: Tensor) -> Tensor:
    """Return what ``layer(inputs)`` gives, from the output of its base layer.

    Raises:
        NotImplementedError: the adapter is more than a low-rank term.
    """
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or layer.merged:
        return base
    result = base
    for name in layer.active_adapters:
        if name in layer.lora_variant:
            raise NotImplementedError(f"adapter {name}: keys and values of a LoRA variant cannot be cached")
        if name in layer.lora_A:
            down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
            result = result + up(down(dropout(inputs.to(down.weight.dtype)))) * layer.scaling[name]
    return result.to(base.dtype)


def forward_cached(
    transformer: SanaTransformer2DModel,
    inputs: Tensor,
    keys_values: Sequence[KeysValues],
    timestep: Tensor,
    text: Tensor | None = None,
) -> Tensor:
    """Return ``transformer(inputs, ..., timestep)`` [B, C, h, w] with finished keys and values for captions.

    Args:
        transformer: with :func:`install` done.
        inputs: [B, C_in, h, w].
        keys_values: see :func:`role_keys_values`; N conditions, B a multiple of N.
        timestep: [B] in [0, 1000].
        text: [B, S] where the transformer is modulated by text.
    """
    patch = transformer.config.patch_size
    height, width = inputs.shape[-2] // patch, inputs.shape[-1] // patch
    hidden = transformer.patch_embed(inputs)
    told = {} if text is None else {"guidance": text}
    modulation, embedded = transformer.time_embed(timestep, batch_size=len(inputs), hidden_dtype=hidden.dtype, **told)
    checkpointed = torch.is_grad_enabled() and transformer.gradient_checkpointing
    for block, pair in zip(transformer.transformer_blocks, keys_values, strict=True):
        arguments = (hidden, None, pair, None, modulation, height, width)
        hidden = transformer._gradient_checkpointing_func(block, *arguments) if checkpointed else block(*arguments)
    hidden = transformer.proj_out(transformer.norm_out(hidden, embedded, transformer.scale_shift_table))
    rows = hidden.unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
    return rows.permute(0, 5, 1, 3, 2, 4).reshape(len(inputs), -1, *inputs.shape[-2:])
