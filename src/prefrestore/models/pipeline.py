"""The restorer as a diffusers pipeline: integrator, generator and codec joined by the one sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from prefrestore.data.images import UnreadableError, to_rgb
from prefrestore.data.pairs import to_tensor, to_uint8
from prefrestore.diffusion.sampler import Sampler, VelocityFunction, Watch, watched
from prefrestore.errors import UserError
from prefrestore.models import codec as codecs
from prefrestore.models.condition import Condition, KeysValues, PreparedCondition, ProjectedCondition
from prefrestore.models.connectors import Connectors
from prefrestore.models.generator import Generator
from prefrestore.models.integrator import Decoded, generate, vocabulary_of
from prefrestore.models.lq_encoder import LqEncoder
from prefrestore.models.pipeline_files import check_folder, check_settings, forget_places, own_memory
from prefrestore.models.rehearsal import rehearse, rehearse_text, skeletons
from prefrestore.models.text import TEXT_GUIDANCE, TEXT_STEPS, Prompt, render_prompts
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.models.weight_files import refuse_not_finite
from prefrestore.runtime.seeding import torch_generator

# Bars for loading weights end in a moment at any size that runs here, and fill a log with control characters.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@dataclass
class RestorationOutput(BaseOutput):
    """Restored images, in the order of the input."""

    images: list[Image.Image]


WHOLE: Mapping[str, Any] = {"dtype": torch.float32}
"""Half precision saves space on disk; processors compute in float32."""


@dataclass(frozen=True)
class SamplingStep:
    """What a callback is told after each step.

    Attributes:
        image: which of the images, from 0.
        step: steps done, from 1.
        num_steps: steps in all.
        sigma: noise level the step started from.
        x0: estimate of the restored latent, [1, C, h, w]; ``pipeline.decode`` makes a picture of it.
    """

    image: int
    step: int
    num_steps: int
    sigma: float
    x0: Tensor


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

    def sampling(self, text: str, num_steps: int | None = None) -> tuple[int, float]:
        """Return steps and guidance: the pipeline's own, and with a text at least TEXT_STEPS and TEXT_GUIDANCE."""
        if not text:
            return num_steps or self.sampler_steps, self.guidance
        return num_steps or max(self.sampler_steps, TEXT_STEPS), max(self.guidance, TEXT_GUIDANCE)

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
        """Return the integrator's prompts for code ids [N, n] and captions, which may be empty.

        Raises:
            UserError: a caption is longer than the integrator's context.
        """
        prompt = render_prompts(self.text_tokenizer, vocabulary_of(self.integrator), lq_ids, texts)
        surplus = prompt.ids.shape[1] + lq_ids.shape[1] - self.integrator.config.max_position_embeddings
        if surplus > 0:
            longest = max(texts, key=len)
            raise UserError(f'the text "{longest[:40]}..." is too long by {surplus} tokens: shorten it')
        return prompt

    @torch.no_grad()
    def integrate(self, lq: Tensor, texts: Sequence[str]) -> Decoded:
        """Let the integrator see LQ images [N, 3, H, W] and texts; return its codes and queries."""
        prompt = self.prompts(self.image_tokenizer.ids(lq), texts)
        return generate(self.integrator, prompt, self.image_tokenizer.num_tokens)

    def join(self, queries: Tensor, spatial: Tensor, text: Tensor) -> Condition:
        """Return the condition of queries [N, n + 1, D], LQ latents [N, C, h, w], texts [N, S]; gradients flow."""
        tokens = self.connectors(queries, self.generator.lq_tokens(spatial))
        return Condition(tokens, spatial + self.connectors.placed(queries), self.connectors.text(text))

    @torch.no_grad()
    def encode_condition(self, lq: Tensor, texts: Sequence[str]) -> Condition:
        """Return the condition of LQ images [N, 3, H, W] in [0, 1], on any device, with one text each."""
        lq = lq.to(self.device)
        decoded = self.integrate(lq, texts)
        return self.join(decoded.queries, self.lq_encoder(lq), decoded.text)

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
        return self.generator(x_t, sigma, seen, condition.spatial, condition.text)

    def velocity_function(
        self, condition: Condition | PreparedCondition, guidance: float | None = None
    ) -> VelocityFunction:
        """Return what a sampler integrates: the velocity under the acting role and guidance (default: the pipeline's).

        Guidance g gives ``v_null + g * (v - v_null)``. Null is what condition dropout trains (reference-method 1.10):
        tokens and text of zero, the spatial path stays; one such token says what all do. At guidance 1 it is left out.
        """
        prepared = self.prepare(condition) if isinstance(condition, Condition) else condition
        scale = self.guidance if guidance is None else guidance
        if scale == 1:
            return lambda x_t, sigma: self.velocity(x_t, sigma, prepared)
        null = PreparedCondition(self._null_keys_values(prepared), prepared.spatial, torch.zeros_like(prepared.text))

        def guided(x_t: Tensor, sigma: Tensor) -> Tensor:
            without = self.velocity(x_t, sigma, null)
            return without + scale * (self.velocity(x_t, sigma, prepared) - without)

        return guided

    def _null_keys_values(self, condition: PreparedCondition) -> tuple[KeysValues, ...]:
        token = condition.spatial.new_zeros(1, 1, self.generator.config.caption_size)
        return self.prepare(Condition(token, condition.spatial[:1], condition.text[:1])).keys_values

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
        watch: Watch | None = None,
    ) -> Tensor:
        """Return latents x0 [M, C, h, w] drawn from the given noise; each of N conditions serves M / N in a row.

        ``watch`` sees every step. The noise may lie on any device.
        """
        sampler = Sampler(num_steps or self.sampler_steps)
        return sampler(watched(self.velocity_function(condition, guidance), watch), noise.to(self.device))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codec latents of images [N, 3, H, W] in [0, 1], on any device."""
        return codecs.encode(self.codec, images.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, H, W] in [0, 1] of codec latents."""
        return codecs.decode(self.codec, latents)

    @torch.no_grad()
    def restore(self, lq: Tensor, texts: Sequence[str], seeds: Sequence[int], num_steps: int | None = None) -> Tensor:
        """Restore LQ images [N, 3, H, W] in [0, 1], one seed each; return the same shape."""
        return self.decode(self.sample(self.encode_condition(lq, texts), self.initial_noise(seeds), num_steps))

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 (few and plain; the last two are for programs)
        self,
        image: Image.Image | Sequence[Image.Image],
        text: str | Sequence[str] = "",
        seed: int = 0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback: Callable[[SamplingStep], None] | None = None,
    ) -> RestorationOutput:
        """Restore aligned faces.

        Args:
            image: one picture or several; any mode and size, the middle square is resized to ``image_size``.
            text: a description for all, or one each; may be empty.
            seed: the same picture, text and seed give the same restoration.
            num_inference_steps: sampling steps; those of :meth:`sampling` when not given.
            generator: draws the noise instead of the seed; one for all pictures in turn, or one each.
            callback: is called after every step.

        Raises:
            UserError: there is no picture, one cannot be used, a text is too long, the number of steps is not positive,
                or the numbers of pictures, texts and generators differ.
        """
        pictures = _listed(image, Image.Image)
        texts = [text] * len(pictures) if isinstance(text, str) else list(text)
        generators = None if generator is None else _listed(generator, torch.Generator)
        _check_call(pictures, texts, generators, num_inference_steps)
        restored = []
        # One face at a time: a fixed batch shape gives the same bytes whatever else is restored beside it.
        for index, (picture, words) in enumerate(zip(pictures, texts, strict=True)):
            lq = to_tensor_of(picture, self.image_size)
            noise = (
                self.initial_noise([seed]) if generators is None else self._drawn(generators[index % len(generators)])
            )
            steps, guidance = self.sampling(words, num_inference_steps)
            watch = None if callback is None else _reporter(callback, index, steps)
            latents = self.sample(self.encode_condition(lq, [words]), noise, steps, guidance, watch)
            restored.append(self.decode(latents).cpu())
        return RestorationOutput(images=[Image.fromarray(array) for array in to_uint8(torch.cat(restored))])

    def _drawn(self, generator: torch.Generator) -> Tensor:
        return torch.randn((1, *self.latent_shape), generator=generator, device=generator.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a pipeline that :meth:`save_pretrained` wrote, from its folder or, by name, from the hub.

        Args:
            folder: where it lies.
            options: as diffusers takes them, such as ``dtype``; float32 by default, whatever is stored.

        Raises:
            UserError: there is no whole restorer in it, its weights do not fit or are not stored as safetensors.
        """
        place = Path(folder)
        if place.is_dir():
            check_folder(place, cls, cls.parts())
        if "torch_dtype" in options:  # the name that diffusers gave up
            options["dtype"] = options.pop("torch_dtype")
        try:
            if place.is_dir():
                rehearse(cls(**skeletons(place, cls.parts())))
            pipeline = super().from_pretrained(str(folder), **{**WHOLE, **options, "use_safetensors": True})
            config = pipeline.config
            check_settings(str(folder), config.sampler_steps, config.guidance, pipeline.text_tokenizer)
            rehearse_text(pipeline)
        except UserError:
            raise
        except Exception as error:  # libraries raise anything on damaged settings; each becomes a stated reason
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: no restorer can be loaded ({reason:.160}): save or fetch it again") from error
        for name, module in pipeline.components.items():
            if isinstance(module, nn.Module):
                refuse_not_finite(module.state_dict().items(), place / name)
                # frozen, as pretraining and import leave them: where gradients are asked for, torch rounds otherwise
                own_memory(module.requires_grad_(False))
        return pipeline

    @classmethod
    def parts(cls) -> dict[str, type[Any]]:
        """Return the classes of the components."""
        return {name: kind for name, kind in get_type_hints(cls.__init__).items() if hasattr(kind, "from_pretrained")}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the pipeline as diffusers does, as safetensors, but for the place it was loaded from.

        Raises:
            UserError: an adapter is loaded; a base is saved without.
        """
        if getattr(self.generator.transformer, "peft_config", None):
            raise UserError(f"{save_directory}: the pipeline carries an adapter: unload_lora_weights() before saving")
        super().save_pretrained(str(save_directory), **{**options, "safe_serialization": True})
        forget_places(Path(save_directory))

    def load_lora_weights(self, folder: str | Path) -> None:
        """Put an adapter on the generator and let it act: a ``policy`` of ours, or a published one.

        Raises:
            UserError: there is no adapter in the folder, it is pickled, was made for another base or does not fit this
                one, or another one is loaded.
        """
        from prefrestore.models.adapter_files import load_adapter

        load_adapter(self, Path(folder))

    def unload_lora_weights(self) -> None:
        """Take the adapter off; the base is as it was."""
        if getattr(self.generator.transformer, "peft_config", None):
            self.generator.transformer.unload_lora()


def _reporter(callback: Callable[[SamplingStep], None], image: int, num_steps: int) -> Watch:
    steps = iter(range(1, num_steps + 1))
    return lambda sigma, x0: callback(SamplingStep(image, next(steps), num_steps, sigma, x0))


def _listed(value: Any, kind: type) -> list[Any]:
    """Return one or several things of a kind as a list."""
    values = [value] if isinstance(value, kind) else list(value)
    for one in values:
        if not isinstance(one, kind):
            raise UserError(f"found a {type(one).__name__} where a {kind.__name__} is needed: convert it first")
    return values


def _check_call(
    pictures: list[Image.Image],
    texts: list[str],
    generators: list[torch.Generator] | None,
    num_steps: int | None,
) -> None:
    if not pictures:
        raise UserError("there is no image to restore: give at least one")
    if len(texts) != len(pictures):
        raise UserError(f"{len(pictures)} images but {len(texts)} texts: give one text, or one for each image")
    if generators is not None and len(generators) not in (1, len(pictures)):
        raise UserError(f"{len(pictures)} images but {len(generators)} generators: give one, or one for each image")
    if num_steps is not None and num_steps < 1:
        raise UserError(f"{num_steps} sampling steps: give at least one")


def to_tensor_of(picture: Image.Image, side: int) -> Tensor:
    """Return the middle square of a picture, upright, as [1, 3, side, side] in [0, 1], resized (Lanczos) if needed.

    Raises:
        UserError: the picture's mode has no meaning as colours.
    """
    try:
        rgb = to_rgb(ImageOps.exif_transpose(picture))
    except UnreadableError as error:
        raise UserError(f"an image of mode {picture.mode} cannot be used ({error}): convert it to RGB") from None
    shape = (side, side)
    sized = rgb if rgb.size == shape else ImageOps.fit(rgb, shape, Image.Resampling.LANCZOS)
    return to_tensor(np.asarray(sized)[None])
