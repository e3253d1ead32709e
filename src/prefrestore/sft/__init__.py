"""Supervised trainers: codec, tokenizer, regression baseline and the two pretraining steps."""
