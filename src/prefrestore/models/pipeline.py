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
from prefrestore.diffusion.sampler import Sampler, VelocityFunction
from prefrestore.errors import UserError
from prefrestore.models import codec as codecs
from prefrestore.models.condition import Condition, KeysValues, PreparedCondition, ProjectedCondition
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
        guidance: float = 1.0,
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
        self.register_to_config(sampler_steps=sampler_steps, guidance=guidance)

    @property
    def sampler_steps(self) -> int:
        """Default number of sampling steps."""
        return int(self.config.sampler_steps)

    @property
    def guidance(self) -> float:
        """Default weight of the condition over none (classifier-free guidance); 1 is the condition alone."""
        return float(self.config.guidance)

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

    def prepare(self, condition: Condition | ProjectedCondition) -> PreparedCondition:
        """Return the acting role's keys and values of a condition, for any number of steps and samples of each.

        Exact while the weights stay: the generator says what it says of the condition itself. Gradients flow to the
        adapters alone.
        """
        projected = self.generator.project(condition) if isinstance(condition, Condition) else condition
        return self.generator.prepare(projected)

    def velocity(self, x_t: Tensor, sigma: Tensor, condition: Condition | PreparedCondition) -> Tensor:
        """Return the generator's velocity [M, C, h, w] of N conditions; each serves M / N samples in a row.

        Gradients flow to whatever is trainable (to adapters alone, where the condition is prepared).
        """
        seen = condition.tokens if isinstance(condition, Condition) else condition.keys_values
        return self.generator(x_t, sigma, seen, condition.spatial)

    def velocity_function(
        self, condition: Condition | PreparedCondition, guidance: float | None = None
    ) -> VelocityFunction:
        """Return what a sampler integrates: the velocity under the acting role and guidance (default: the pipeline's).

        Guidance g gives ``v_null + g * (v - v_null)``. Null is what condition dropout trains (reference-method 1.10):
        tokens of zero, while the spatial path stays. Attention over equal tokens is attention over one of them, so
        one is enough. At guidance 1 null is not computed.
        """
        prepared = self.prepare(condition) if isinstance(condition, Condition) else condition
        scale = self.guidance if guidance is None else guidance
        if scale == 1:
            return lambda x_t, sigma: self.velocity(x_t, sigma, prepared)
        null = PreparedCondition(self._null_keys_values(prepared.spatial), prepared.spatial)

        def guided(x_t: Tensor, sigma: Tensor) -> Tensor:
            without = self.velocity(x_t, sigma, null)
            return without + scale * (self.velocity(x_t, sigma, prepared) - without)

        return guided

    def _null_keys_values(self, spatial: Tensor) -> tuple[KeysValues, ...]:
        token = spatial.new_zeros(1, 1, self.generator.config.caption_size)
        return self.prepare(Condition(token, spatial[:1])).keys_values

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return noise [N, C, h, w]; each sample depends on its own seed alone."""
        return torch.stack([torch.randn(self.latent_shape, generator=torch_generator("noise", s)) for s in seeds])

    @torch.no_grad()
    def sample(
        self,
        condition: Condition | PreparedCondition,
        noise: Tensor,
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return latents x0 [M, C, h, w] drawn from the given noise; each of N conditions serves M / N in a row."""
        sampler = Sampler(num_steps or self.sampler_steps)
        return sampler(self.velocity_function(condition, guidance), noise)

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
