"""The auto-regressive integrator: a Qwen3 decoder that turns LQ codes and text into dense latent queries.

Queries are the final-layer states at ``<S0>`` and at every image code: [B, n + 1, D] (reference-method 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from prefrestore.config import IntegratorConfig
from prefrestore.models.decoding import StepDecoder, positions
from prefrestore.models.text import Prompt, Vocabulary


@dataclass(frozen=True)
class Decoded:
    """What the integrator says of a batch.

    Attributes:
        ids: code ids, [B, n].
        queries: the states that go with them, [B, n + 1, D].
        text: what the text says, see :func:`text_state`, [B, 2 * D].
    """

    ids: Tensor
    queries: Tensor
    text: Tensor


CONTEXT = 2048
"""Positions of the longest sequence the integrator is trained on (reference-method 1.4)."""


def layout_fields(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the fields of an integrator's configuration that record the id layout (reference-method 1.2)."""
    return {
        "image_start_tag_id": vocabulary.image_start,
        "image_end_tag_id": vocabulary.image_end,
        "scale_start_token_id": vocabulary.scale,
        "scale_end_token_id": vocabulary.scale + 2,
        "num_scale_tokens": 3,
        "image_start_token_id": vocabulary.first_code,
        "image_end_token_id": vocabulary.size - 1,
        "num_image_tokens": vocabulary.num_codes,
    }


def build_integrator(config: IntegratorConfig, vocabulary: Vocabulary) -> Qwen3ForCausalLM:
    """Return an untrained Qwen3 with the vocabulary's layout recorded in its configuration."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary.size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **layout_fields(vocabulary),
            text_first=vocabulary.text_first,
        )
    )


def vocabulary_of(integrator: Qwen3ForCausalLM) -> Vocabulary:
    """Return the id layout recorded in an integrator's configuration."""
    config = integrator.config
    return Vocabulary(config.image_start_tag_id, config.num_image_tokens, getattr(config, "text_first", False))


def teacher_forced(integrator: Qwen3ForCausalLM, prompt: Prompt, ids: Tensor) -> Decoded:
    """Run the integrator over prompt and given codes [B, n]; the query span is exact, whatever the padding."""
    vocabulary = vocabulary_of(integrator)
    whole = torch.cat([prompt.ids, ids + vocabulary.first_code], 1)
    mask = torch.cat([prompt.mask, torch.ones_like(ids)], 1)
    output = integrator.model(input_ids=whole, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    states = output.last_hidden_state
    return Decoded(ids, states[:, prompt.ids.shape[1] - 1 :], text_state(integrator, prompt, states))


def text_state(integrator: Qwen3ForCausalLM, prompt: Prompt, states: Tensor) -> Tensor:
    """Return means over each prompt's text, of the states [B, >= L, D] and of the words' embeddings, [B, 2 * D].

    Zero where there is no text. A small integrator's states hardly tell words apart; its embeddings do.
    """
    kept = prompt.text.to(states)[..., None]
    both = torch.cat([states[:, : kept.shape[1]], integrator.model.embed_tokens(prompt.ids).to(states)], -1)
    return (both * kept).sum(1) / kept.sum(1).clamp_min(1)


def text_size_of(query_size: int) -> int:
    """Return the size of a text state, from that of the integrator's states."""
    return 2 * query_size


@torch.no_grad()
def generate(integrator: Qwen3ForCausalLM, prompt: Prompt, num_tokens: int) -> Decoded:
    """Decode ``num_tokens`` codes greedily; the head sees legal ids only and states are kept on the way."""
    vocabulary = vocabulary_of(integrator)
    head = integrator.lm_head.weight[vocabulary.first_code : vocabulary.size]
    decoder = StepDecoder(integrator.model, prompt.mask, num_tokens)
    read = decoder.start(prompt.ids)
    states, codes = [read[:, -1]], []
    for _ in range(num_tokens):
        codes.append(functional.linear(states[-1], head).argmax(-1))
        states.append(decoder.step(codes[-1] + vocabulary.first_code))
    return Decoded(torch.stack(codes, 1), torch.stack(states, 1), text_state(integrator, prompt, read))
