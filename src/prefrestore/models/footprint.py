"""What a preset's networks cost, without allocating them: parameters, memory, floating-point operations.

Operations are counted as torch counts them: a multiplication and an addition are two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ForCausalLM

from prefrestore.config import Config
from prefrestore.models.codec import build_codec, published_codec
from prefrestore.models.connectors import Connectors, build_connectors
from prefrestore.models.generator import Generator, build_generator
from prefrestore.models.integrator import build_integrator
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.reference_layout import empty
from prefrestore.models.reference_tokenizer import published_tokenizer
from prefrestore.models.text import Vocabulary
from prefrestore.models.tokenizer import ImageTokenizer

TEMPLATE = 28
"""Text positions of the prompt without a caption: its 29 ids but for the image's placeholder (reference-method 1.4)."""


@dataclass(frozen=True)
class Networks:
    """A preset's networks on the meta device."""

    codec: AutoencoderDC
    lq_encoder: LqEncoder
    image_tokenizer: ImageTokenizer
    integrator: Qwen3ForCausalLM
    connectors: Connectors
    generator: Generator


@dataclass(frozen=True)
class Part:
    """What one component is and does in the restoration of one image.

    Attributes:
        name: component and what it does.
        parameters: their number; 0 where an earlier row of the same component counts them.
        flops: operations, of all runs.
        runs: how often it runs.
    """

    name: str
    parameters: int
    flops: float
    runs: int = 1


def build_networks(config: Config) -> Networks:
    """Build a preset's networks without memory."""
    codec_config, pretrain = config.train_codec, config.pretrain
    with torch.device("meta"):
        if codec_config.weights:
            codec = published_codec(codec_config.widths, codec_config.layers, codec_config.latent_channels)
        else:
            codec = build_codec(codec_config)
        tokenizer = published_tokenizer(
            codec_config.tokenizer, feature_layer=-2 if codec_config.tokenizer.weights else -1
        )
        vocabulary = Vocabulary(pretrain.integrator.text_vocabulary, codec_config.tokenizer.codebook_size)
        latent_size = config.ingest.image_size // codec.spatial_compression_ratio
        query_size = pretrain.integrator.hidden_size
        return Networks(
            codec=codec,
            lq_encoder=LqEncoder.from_codec(codec, pretrain.lq_corrector),
            image_tokenizer=tokenizer.to("meta"),
            integrator=build_integrator(pretrain.integrator, vocabulary),
            connectors=empty(
                lambda: build_connectors(
                    pretrain.generator, query_size, tokenizer.grid, (codec.config.latent_channels, latent_size)
                )
            ).to("meta"),
            generator=build_generator(pretrain.generator, codec.config.latent_channels, latent_size, query_size),
        )


def flops(run: Callable[[], object]) -> float:
    """Count the operations of a call on tensors of the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def parameters(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(value.numel() for value in module.parameters())


def generator_flops(networks: Networks, tokens: int) -> float:
    """Return the operations of one velocity with so many condition tokens."""
    config = networks.generator.config
    latent = torch.empty(1, config.latent_channels, config.latent_size, config.latent_size, device="meta")
    condition = torch.empty(1, tokens, config.caption_size, device="meta")
    sigma, text = torch.empty(1, device="meta"), torch.empty(1, config.text_size, device="meta")
    return flops(lambda: networks.generator(latent, sigma, condition, latent, text))


def decoding_flops(networks: Networks, prompt: int) -> tuple[float, float]:
    """Return the operations of reading a prompt of so many positions, and of saying all codes with a cache.

    A pass over L positions costs ``a L + b L^2``; with a cache, position p costs ``a + b p``. The head sees codes only.
    """
    model, codes = networks.integrator.model, networks.image_tokenizer.num_tokens

    def whole(length: int) -> float:
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        # the mask is causal either way; making one reads values, which tensors of the meta device do not have
        return flops(lambda: model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False))

    one, two = whole(1), whole(2)
    square = (two - 2 * one) / 2
    each = one - square
    attended = sum(range(prompt + 1, prompt + codes + 1))
    head = 2 * codes * networks.integrator.config.hidden_size * networks.integrator.config.num_image_tokens
    return whole(prompt), codes * each + square * attended + head


def footprint(config: Config) -> list[Part]:
    """Return what each part of a preset costs in the restoration of one image without a caption, in order."""
    networks = build_networks(config)
    side, latent_size = config.ingest.image_size, networks.generator.config.latent_size
    image = torch.empty(1, 3, side, side, device="meta")
    latent = torch.empty(1, networks.codec.config.latent_channels, latent_size, latent_size, device="meta")
    tokenizer, connectors = networks.image_tokenizer, networks.connectors
    codes = tokenizer.num_tokens
    prompt, said = decoding_flops(networks, TEMPLATE + codes)
    queries = torch.empty(1, codes + 1, connectors.config.query_size, device="meta")
    lq_tokens = torch.empty(1, connectors.config.lq_grid**2, connectors.config.lq_size, device="meta")
    tokens, steps = codes + 1 + connectors.config.lq_grid**2, config.pretrain.sampler_steps
    pixels = torch.empty(1, 3, tokenizer.config.image_size, tokenizer.config.image_size, device="meta")
    matching = 2 * codes * tokenizer.config.codebook_size * tokenizer.config.code_dim
    return [
        Part("image_tokenizer", parameters(tokenizer), flops(lambda: tokenizer.encode(pixels)) + matching),
        Part("integrator, prompt", parameters(networks.integrator), prompt),
        Part("integrator, decoding", 0, said, codes),
        Part("lq_encoder", parameters(networks.lq_encoder), flops(lambda: networks.lq_encoder(image))),
        Part("connectors", parameters(connectors), flops(lambda: connectors(queries, lq_tokens))),
        Part("generator", parameters(networks.generator), steps * generator_flops(networks, tokens), steps),
        Part("codec, encoder", parameters(networks.codec.encoder), 0, 0),
        Part("codec, decoder", parameters(networks.codec.decoder), flops(lambda: networks.codec.decode(latent))),
    ]
