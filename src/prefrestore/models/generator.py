"""The diffusion generator: ``SanaTransformer2DModel`` with a spatially aligned LQ path that starts at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin, SanaTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn

from prefrestore.config import GeneratorConfig
from prefrestore.models import cross_attention
from prefrestore.models.condition import Condition, KeysValues, PreparedCondition, ProjectedCondition, repeated
from prefrestore.models.integrator import text_size_of

TIME_SIZE = 32


def spatial_gain(latent_channels: int) -> nn.Sequential:
    """Return the network from noise level to the gains on ``x_t`` and the LQ latent; it starts at zero."""
    last = nn.Linear(TIME_SIZE, 2 * latent_channels)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(TIME_SIZE, TIME_SIZE), nn.SiLU(), last)


class TextModulation(AdaLayerNormSingle):
    """Sana's modulation by noise level, plus one by text [B, S] that starts at zero; it is zero where the text is.

    It takes the text by the name under which the transformer passes on a guidance scale.
    """

    def __init__(self, size: int, text_size: int) -> None:
        super().__init__(size)
        last = nn.Linear(text_size, 6 * size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.text = nn.Sequential(nn.Linear(text_size, text_size), nn.GELU(), last)

    def forward(
        self,
        timestep: Tensor,
        batch_size: int | None = None,
        hidden_dtype: torch.dtype | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the modulation [B, 6 * size] of all blocks and the embedded noise level [B, size]."""
        modulation, embedded = super().forward(timestep, batch_size=batch_size, hidden_dtype=hidden_dtype)
        if guidance is None:
            return modulation, embedded
        given = guidance.any(1, keepdim=True)
        return modulation + self.text(guidance.to(modulation.dtype)) * given, embedded


def _with_text(plain: AdaLayerNormSingle, size: int, text_size: int) -> TextModulation:
    """Return a modulation by noise level that knows text too; all other weights are what they are without it."""
    with torch.random.fork_rng(devices=[]):
        told = TextModulation(size, text_size)
    told.load_state_dict(plain.state_dict(), strict=False)
    return told


class Generator(ModelMixin, ConfigMixin):
    """Predicts the velocity of ``x_t`` from its noise level, condition tokens and the LQ latent.

    The spatial path has two parts, both zero at the start so that weights published without them load bit-true:
    the LQ latent as extra input channels of the patch embedding, and a per-channel, noise-level dependent gain on
    ``x_t`` and the LQ latent added to the output (the linear part of the optimal denoiser). With ``text_size`` the text
    modulates every block; that, too, starts at zero.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 (diffusers stores these arguments as the model's configuration)
        self,
        latent_channels: int = 32,
        latent_size: int = 16,
        patch_size: int = 1,
        layers: int = 20,
        heads: int = 70,
        head_dim: int = 32,
        cross_heads: int = 20,
        cross_head_dim: int = 112,
        caption_size: int = 2304,
        ffn_ratio: float = 2.5,
        spatial_path: bool = True,
        text_size: int = 0,
    ) -> None:
        super().__init__()
        self.transformer = SanaTransformer2DModel(
            in_channels=2 * latent_channels if spatial_path else latent_channels,
            out_channels=latent_channels,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=layers,
            num_cross_attention_heads=cross_heads,
            cross_attention_head_dim=cross_head_dim,
            cross_attention_dim=heads * head_dim,
            caption_channels=caption_size,
            mlp_ratio=ffn_ratio,
            sample_size=latent_size,
            patch_size=patch_size,
            qk_norm="rms_norm_across_heads",
        )
        cross_attention.install(self.transformer)
        if text_size:
            self.transformer.time_embed = _with_text(self.transformer.time_embed, heads * head_dim, text_size)
        if spatial_path:
            with torch.no_grad():
                self.transformer.patch_embed.proj.weight[:, latent_channels:].zero_()
            # in the transformer, so that an adapter of the transformer may hold it too
            self.transformer.gain = spatial_gain(latent_channels)

    def lq_tokens(self, spatial: Tensor) -> Tensor:
        """Return the LQ latent [B, C, h, w] as tokens [B, m, D] by the transformer's own patch embedding (1.9)."""
        if self.config.spatial_path:
            spatial = torch.cat([spatial, torch.zeros_like(spatial)], 1)
        return self.transformer.patch_embed(spatial)

    @torch.no_grad()
    def project(self, condition: Condition) -> ProjectedCondition:
        """Return the base's captions, keys and values, which all roles share; without gradient: the base is frozen."""
        captions = cross_attention.project_captions(self.transformer, condition.tokens)
        pairs = cross_attention.base_keys_values(self.transformer, captions)
        return ProjectedCondition(captions, pairs, condition.spatial, condition.text)

    def prepare(self, projected: ProjectedCondition) -> PreparedCondition:
        """Return the acting role's keys and values; gradients flow to its adapters."""
        pairs = cross_attention.role_keys_values(self.transformer, projected.captions, projected.keys_values)
        return PreparedCondition(pairs, projected.spatial, projected.text)

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        tokens: Tensor | Sequence[KeysValues],
        spatial: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity [B, C, h, w]. Where there are fewer conditions than samples, each serves some in a row.

        Args:
            x_t: noisy latent, [B, C, h, w].
            sigma: noise level, [B] in [0, 1].
            tokens: condition tokens, [N, T, caption_size], or what :meth:`prepare` made of them.
            spatial: LQ latent, [N, C, h, w].
            text: standardised text states, [N, text_size]; None is no text.
        """
        x_t, spatial = x_t.to(self.dtype), repeated(spatial, len(x_t)).to(self.dtype)
        inputs = torch.cat([x_t, spatial], 1) if self.config.spatial_path else x_t
        timestep = 1000 * sigma
        told = None if text is None or not self.config.text_size else repeated(text, len(x_t))
        if isinstance(tokens, Tensor):
            captions = repeated(tokens, len(x_t))
            velocity = self.transformer(inputs, captions, timestep, guidance=told, return_dict=False)[0]
        else:
            velocity = cross_attention.forward_cached(self.transformer, inputs, tokens, timestep, told)
        if self.config.spatial_path:
            embedding = get_timestep_embedding(timestep, TIME_SIZE, flip_sin_to_cos=True, downscale_freq_shift=0)
            on_noisy, on_lq = self.transformer.gain(embedding.to(self.dtype))[:, :, None, None].chunk(2, 1)
            velocity = velocity + on_noisy * x_t + on_lq * spatial
        return velocity


def build_generator(config: GeneratorConfig, latent_channels: int, latent_size: int, query_size: int) -> Generator:
    """Return an untrained generator for latents [B, latent_channels, latent_size, latent_size].

    ``query_size`` is the size of the integrator's states.
    """
    return Generator(
        latent_channels=latent_channels,
        latent_size=latent_size,
        patch_size=config.patch_size,
        layers=config.layers,
        heads=config.heads,
        head_dim=config.head_dim,
        cross_heads=config.cross_heads,
        cross_head_dim=config.cross_head_dim,
        caption_size=config.caption_size,
        ffn_ratio=config.ffn_ratio,
        spatial_path=config.spatial_path,
        text_size=text_size_of(query_size) if config.text_modulation else 0,
    )
