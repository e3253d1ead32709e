"""Text and prompts: a byte-pair tokenizer at small sizes, and the chat rendering of reference-method 1.4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."
RESTORE = "Please reconstruct the given image."
RESTORE_CAPTION = "Please reconstruct the given image based on the image content: "
BEFORE_IMAGE = f"{CHAT_START}system\n{SYSTEM}{CHAT_END}\n{CHAT_START}user\n"
ASSISTANT = f"{CHAT_END}\n{CHAT_START}assistant\n"
TEXT_STEPS, TEXT_GUIDANCE = 2, 3.0
"""At least so many steps and this guidance where a text is given: else the weights that ship hardly heed it."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the integrator: text, then two image tags, three scale tokens, then the image codes (1.2).

    ``text_first`` says how prompts are laid out: the text before the LQ codes, or after them as published. Before them,
    the distance between an LQ code and HQ's code of the same place does not depend on the text's length.
    """

    text_size: int
    num_codes: int
    text_first: bool = False

    @property
    def image_start(self) -> int:
        """Id of ``<im_start>``, the opening image tag."""
        return self.text_size

    @property
    def image_end(self) -> int:
        """Id of ``<im_end>``, the closing image tag."""
        return self.text_size + 1

    @property
    def scale(self) -> int:
        """Id of ``<S0>``, the scale token of the finest grid."""
        return self.text_size + 2

    @property
    def first_code(self) -> int:
        """Id of ``<I0>``; code k has the id ``first_code + k``."""
        return self.text_size + 5

    @property
    def size(self) -> int:
        """Rows of embedding and head."""
        return self.first_code + self.num_codes


@dataclass(frozen=True)
class Prompt:
    """A batch of left-padded prompts that end with ``<im_start><S0>``.

    Attributes:
        ids: [B, L].
        mask: [B, L], 0 on padding.
        text: [B, L], 1 on the instruction of a prompt that carries a caption; 0 everywhere in one that carries none.
    """

    ids: Tensor
    mask: Tensor
    text: Tensor


def train_text_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most ``size`` entries on the captions and the prompt literals."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, CHAT_START, CHAT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    literals = [f"system\n{SYSTEM}", "user\n", "assistant\n", RESTORE, RESTORE_CAPTION]
    tokenizer.train_from_iterator([*literals, *sorted(set(texts))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=CHAT_END)


def restore_instruction(caption: str) -> str:
    """Return the user's instruction; an empty caption gives the prompt without one."""
    return RESTORE_CAPTION + caption if caption else RESTORE


def _plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return ids of a text in which special tokens are plain text: no caption ends the user's turn from within."""
    ids: list[int] = tokenizer.encode(text, split_special_tokens=True)
    return ids


def render_prompts(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, lq_ids: Tensor, captions: Sequence[str]
) -> Prompt:
    """Render prompts: system, user (LQ codes, instruction), assistant opened with ``<im_start><S0>``.

    Args:
        tokenizer: text tokenizer.
        vocabulary: id layout.
        lq_ids: code ids of the LQ images, [B, n].
        captions: one per image; may be empty strings.
    """
    before = tokenizer.encode(BEFORE_IMAGE)
    after = tokenizer.encode(ASSISTANT)
    opening = [vocabulary.image_start, vocabulary.scale]
    rows, texts = [], []
    for codes, caption in zip(lq_ids, captions, strict=True):
        picture = (codes + vocabulary.first_code).tolist()
        instruction = restore_instruction(caption)
        if vocabulary.text_first:
            words = _plain(tokenizer, instruction + "\n")
            turn, start = [*words, *picture], len(before)
        else:
            words = _plain(tokenizer, "\n" + instruction)
            turn, start = [*picture, *words], len(before) + len(picture)
        row = [*before, *turn, *after, *opening]
        rows.append(row)
        texts.append([int(bool(caption) and start <= place < start + len(words)) for place in range(len(row))])
    length = max(map(len, rows))
    padding = int(tokenizer.pad_token_id)
    ids = torch.tensor([[padding] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    text = torch.tensor([[0] * (length - len(row)) + row for row in texts])
    return Prompt(ids, mask, text)
