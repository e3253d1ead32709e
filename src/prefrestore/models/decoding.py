"""Decoding by a Qwen3 model one id at a time, over keys and values in memory that is allocated once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Model
from transformers.cache_utils import Cache, CacheLayerMixin


class StaticLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place; attention sees the part that is filled.

    transformers' own ``StaticLayer`` lets attention run over the whole buffer, empty places masked: twice the work on
    average. Its dynamic layer copies everything at every step.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate as the first keys and values, both [B, heads, n, head_dim], need it."""
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], self.length, states.shape[-1]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002 (the interface of transformers)
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return all so far, [B, heads, filled, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, start : self.filled] = key_states
        self.values[:, :, start : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places the next attention sees, and where they begin."""
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many places are filled."""
        return self.filled

    def get_max_length(self) -> int:
        """Return how many places there are."""
        return self.length


class StepDecoder:
    """Feeds a model one id after another; cache, mask and rotations of all steps are made at the start.

    Args:
        model: the decoder without its head.
        mask: which places of the left-padded prompts are real, [B, L].
        num_steps: ids that will follow the prompts.
    """

    def __init__(self, model: Qwen3Model, mask: Tensor, num_steps: int) -> None:
        total = mask.shape[1] + num_steps
        self._model = model
        self._cache = Cache(layers=[StaticLayer(total) for _ in model.layers])
        self._mask = torch.cat([mask, mask.new_ones(len(mask), num_steps)], 1)
        self._positions = positions(self._mask)
        self._rotations = model.rotary_emb(model.embed_tokens.weight, self._positions)
        # without padding every place may be seen, and attention needs no mask
        self._visible = None if mask.all() else self._mask.bool()[:, None, None]

    def start(self, ids: Tensor) -> Tensor:
        """Read the prompts' ids [B, L]; return their states, [B, L, D]."""
        places = slice(ids.shape[1])
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, places],
            position_ids=self._positions[:, places],
            past_key_values=self._cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states

    def step(self, ids: Tensor) -> Tensor:
        """Read one more id of each sequence, [B]; return its state, [B, D]."""
        place = self._cache.get_seq_length()
        cos, sin = (part[:, place : place + 1] for part in self._rotations)
        visible = None if self._visible is None else self._visible[..., : place + 1]
        hidden = self._model.embed_tokens(ids[:, None])
        for layer in self._model.layers:
            hidden = layer(hidden, attention_mask=visible, position_embeddings=(cos, sin), past_key_values=self._cache)
        return self._model.norm(hidden)[:, 0]


def positions(mask: Tensor) -> Tensor:
    """Return position ids [B, L] of left-padded sequences."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
