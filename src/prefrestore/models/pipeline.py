"""The restorer as a diffusers pipeline: integrator, generator and codec joined by the one sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from prefrestore.data.pairs import to_tensor, to_uint8
from prefrestore.diffusion.sampler import Sampler
from prefrestore.errors import UserError
from prefrestore.models import codec as codecs
from prefrestore.models.condition import Condition
from prefrestore.models.connectors import Connectors
from prefrestore.models.generator import Generator
from prefrestore.models.integrator import Decoded, generate, vocabulary_of
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.text import Prompt, render_prompts
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.runtime.seeding import torch_generator

# Bars for loading weights end in a moment at any size that runs here, and fill a log with control characters.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@dataclass
class RestorationOutput(BaseOutput):
    """Restored images, in the order of the input."""

    images: list[Image.Image]


class PrefRestorePipeline(DiffusionPipeline):
    """Restores faces: ``pipeline(image, text)``; the parts below serve training, alignment and evaluation."""

    def __init__(  # noqa: PLR0913 (the components that model_index.json lists)
        self,
        codec: AutoencoderDC,
        lq_encoder: LqEncoder,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: PreTrainedTokenizerFast,
        integrator: Qwen3ForCausalLM,
        connectors: Connectors,
        generator: Generator,
        sampler_steps: int = 8,
    ) -> None:
        super().__init__()
        self.register_modules(
            codec=codec,
            lq_encoder=lq_encoder,
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            integrator=integrator,
            connectors=connectors,
            generator=generator,
        )
        self.register_to_config(sampler_steps=sampler_steps)

    @property
    def sampler_steps(self) -> int:
        """Default number of sampling steps."""
        return int(self.config.sampler_steps)

    @property
    def image_size(self) -> int:
        """Side of the images this pipeline restores, pixels."""
        return int(self.latent_shape[-1] * self.codec.spatial_compression_ratio)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent, (C, h, w)."""
        config = self.generator.config
        return config.latent_channels, config.latent_size, config.latent_size

    def prompts(self, lq_ids: Tensor, texts: Sequence[str]) -> Prompt:
        """Return the integrator's prompts for code ids [N, n] and captions, which may be empty."""
        return render_prompts(self.text_tokenizer, vocabulary_of(self.integrator), lq_ids, texts)

    @torch.no_grad()
    def integrate(self, lq: Tensor, texts: Sequence[str]) -> Decoded:
        """Let the integrator see LQ images [N, 3, H, W] and texts; return its codes and queries."""
        prompt = self.prompts(self.image_tokenizer.ids(lq), texts)
        return generate(self.integrator, prompt, self.image_tokenizer.num_tokens)

    def join(self, queries: Tensor, spatial: Tensor) -> Condition:
        """Return the condition of queries [N, n + 1, D] and LQ latents [N, C, h, w]; gradients flow."""
        return Condition(self.connectors(queries, self.generator.lq_tokens(spatial)), spatial)

    @torch.no_grad()
    def encode_condition(self, lq: Tensor, texts: Sequence[str]) -> Condition:
        """Return the condition of LQ images [N, 3, H, W] in [0, 1] with one text each."""
        return self.join(self.integrate(lq, texts).queries, self.lq_encoder(lq))

    def velocity(self, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the generator's velocity [N, C, h, w]; gradients flow to whatever is trainable."""
        return self.generator(x_t, sigma, condition.tokens, condition.spatial)

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return noise [N, C, h, w]; each sample depends on its own seed alone."""
        return torch.stack([torch.randn(self.latent_shape, generator=torch_generator("noise", s)) for s in seeds])

    @torch.no_grad()
    def sample(self, condition: Condition, noise: Tensor, num_steps: int | None = None) -> Tensor:
        """Return latents x0 [N, C, h, w] drawn for a condition from the given noise."""
        sampler = Sampler(num_steps or self.sampler_steps)
        return sampler(lambda x_t, sigma: self.velocity(x_t, sigma, condition), noise)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codec latents of images [N, 3, H, W] in [0, 1]."""
        return codecs.encode(self.codec, images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, H, W] in [0, 1] of codec latents."""
        return codecs.decode(self.codec, latents)

    @torch.no_grad()
    def restore(self, lq: Tensor, texts: Sequence[str], seeds: Sequence[int], num_steps: int | None = None) -> Tensor:
        """Restore LQ images [N, 3, H, W] in [0, 1], one seed each; return the same shape."""
        return self.decode(self.sample(self.encode_condition(lq, texts), self.initial_noise(seeds), num_steps))

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        text: str | Sequence[str] = "",
        seed: int = 0,
        num_inference_steps: int | None = None,
    ) -> RestorationOutput:
        """Restore aligned faces.

        Args:
            image: one picture or several; any mode and size, resized to ``image_size``.
            text: a description for all, or one each; may be empty.
            seed: the same picture, text and seed give the same restoration.
            num_inference_steps: sampling steps; ``sampler_steps`` when not given.

        Raises:
            UserError: there is no picture, or the numbers of pictures and texts differ.
        """
        pictures = [image] if isinstance(image, Image.Image) else list(image)
        texts = [text] * len(pictures) if isinstance(text, str) else list(text)
        if not pictures:
            raise UserError("there is no image to restore: give at least one")
        if len(texts) != len(pictures):
            raise UserError(f"{len(pictures)} images but {len(texts)} texts: give one text, or one for each image")
        side = (self.image_size, self.image_size)
        # One face at a time: a fixed batch shape gives the same bytes whatever else is restored beside it.
        restored = [
            self.restore(to_tensor_of(picture, side), [words], [seed], num_inference_steps)
            for picture, words in zip(pictures, texts, strict=True)
        ]
        return RestorationOutput(images=[Image.fromarray(array) for array in to_uint8(torch.cat(restored))])


def to_tensor_of(picture: Image.Image, side: tuple[int, int]) -> Tensor:
    """Return a picture as [1, 3, H, W] in [0, 1], resized (Lanczos) where needed."""
    rgb = picture.convert("RGB")
    sized = rgb if rgb.size == side else rgb.resize(side, Image.Resampling.LANCZOS)
    return to_tensor(np.asarray(sized)[None])
