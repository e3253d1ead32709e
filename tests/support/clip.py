"""Small CLIP and SigLIP models of random weights, with a tokenizer of a few characters, in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

LETTERS = "abcdefgh"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**SIZES, "num_hidden_layers": 4, "image_size": 24, "patch_size": 8}


def save_clip(folder: Path) -> Path:
    """Write a CLIP."""
    characters = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {text: number for number, text in enumerate(characters)}
    ends = {"bos_token_id": 16, "eos_token_id": 17, "pad_token_id": 17}
    text = {**SIZES, **ends, "num_hidden_layers": 1, "vocab_size": 18, "max_position_embeddings": 12}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    CLIPTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", **marks).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """Write a SigLIP; as in the published ones a text is padded with the token that ends it."""
    vocabulary = {text: number for number, text in enumerate([*LETTERS, "</s>", "<unk>"])}
    text = {**SIZES, "num_hidden_layers": 1, "vocab_size": 10, "max_position_embeddings": 12, "projection_size": 16}
    torch.manual_seed(seed)
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    marks = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return folder
