"""What the integrator is trained on: whole conversations with HQ's codes given (reference-method 1.4, 1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from prefrestore.models.integrator import positions, vocabulary_of
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import CHAT_END, Prompt

QuerySpan = Literal["exact", "last_of_padded"]


@dataclass(frozen=True)
class Sequences:
    """Prompt, codes and the turn's closing tokens, padded on the right.

    Attributes:
        ids: [B, L].
        mask: [B, L], 0 on padding.
        first: place of ``<S0>``, whose state predicts the first code, [B].
        num_codes: codes of an image (n); they stand after ``<S0>``.
    """

    ids: Tensor
    mask: Tensor
    first: Tensor
    num_codes: int

    def span(self) -> Tensor:
        """Return the places of ``<S0>`` and of all codes, [B, n + 1]."""
        return self.first[:, None] + torch.arange(self.num_codes + 1, device=self.first.device)


def build_sequences(pipeline: PrefRestorePipeline, prompt: Prompt, codes: Tensor) -> Sequences:
    """Return the training sequences of left-padded prompts and codes [B, n]."""
    vocabulary = vocabulary_of(pipeline.integrator)
    closing = [vocabulary.image_end, *pipeline.text_tokenizer.encode(f"{CHAT_END}\n")]
    end = torch.tensor(closing, device=codes.device)
    rows = [
        torch.cat([ids[mask.bool()], own + vocabulary.first_code, end])
        for ids, mask, own in zip(prompt.ids, prompt.mask, codes, strict=True)
    ]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    padded = pad_sequence(rows, batch_first=True, padding_value=int(pipeline.text_tokenizer.pad_token_id))
    return Sequences(padded, mask, prompt.mask.sum(1) - 1, codes.shape[1])


def final_states(pipeline: PrefRestorePipeline, sequences: Sequences) -> Tensor:
    """Run the integrator over whole sequences; return its states [B, L, D]. Padding is embedded as zero."""
    embedded = pipeline.integrator.model.embed_tokens(sequences.ids) * sequences.mask[..., None]
    output = pipeline.integrator.model(
        inputs_embeds=embedded,
        attention_mask=sequences.mask,
        position_ids=positions(sequences.mask),
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state
    return states


def queries_of(states: Tensor, sequences: Sequences, span: QuerySpan) -> Tensor:
    """Return the queries [B, n + 1, D]: the states of ``<S0>`` and the codes.

    ``last_of_padded`` takes the last n + 1 places of the padded sequence, as the published training does: shifted by
    the closing tokens and by the padding (reference-method 6.2, Q6).
    """
    if span == "last_of_padded":
        return states[:, -(sequences.num_codes + 1) :]
    return states.gather(1, sequences.span()[..., None].expand(-1, -1, states.shape[-1]))


def code_loss(
    pipeline: PrefRestorePipeline, states: Tensor, sequences: Sequences, prompt_loss: bool
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy over the whole vocabulary and the share of codes predicted right.

    Targets are HQ's codes; with ``prompt_loss`` also all text, as published. LQ's codes never are.
    """
    following = sequences.ids[:, 1:]
    places = torch.arange(1, sequences.ids.shape[1], device=following.device)
    after = places - sequences.first[:, None]
    is_code = (after > 0) & (after <= sequences.num_codes)
    asked = is_code
    if prompt_loss:
        is_lq = (following >= vocabulary_of(pipeline.integrator).first_code) & ~is_code
        asked = sequences.mask[:, 1:].bool() & ~is_lq
    # the head is wide: it sees the states that are asked for alone
    logits, targets = pipeline.integrator.lm_head(states[:, :-1][asked]).float(), following[asked]
    right = (logits.argmax(-1) == targets)[is_code[asked]].float().mean()
    return functional.cross_entropy(logits, targets), right
