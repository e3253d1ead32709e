"""The diffusion generator: ``SanaTransformer2DModel`` with a spatially aligned LQ path that starts at zero."""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin, SanaTransformer2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from prefrestore.config import GeneratorConfig
from prefrestore.diffusion.flow import per_sample

LQ_ERROR = 0.3
"""Starting value of the variance of x0 around the LQ latent; learned per channel."""


class Generator(ModelMixin, ConfigMixin):
    """Predicts the velocity of ``x_t`` from its noise level, condition tokens and the LQ latent.

    The spatial path has two parts, both zero at the start so that weights published without them load bit-true:
    the LQ latent as extra input channels of the patch embedding, and, added to the output through a gate per channel,
    the velocity that would be right if x0 were the LQ latent plus Gaussian noise of a learned variance.
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
        if spatial_path:
            with torch.no_grad():
                self.transformer.patch_embed.proj.weight[:, latent_channels:].zero_()
            self.linear_gate = nn.Parameter(torch.zeros(latent_channels))
            self.log_spread = nn.Parameter(torch.full((latent_channels,), math.log(LQ_ERROR)))

    @torch.no_grad()
    def start_from_scratch(self) -> None:
        """Open the linear part fully and let the transformer add nothing yet: the start without published weights."""
        if self.config.spatial_path:
            self.transformer.proj_out.weight.zero_()
            self.transformer.proj_out.bias.zero_()
            self.linear_gate.fill_(1.0)

    def lq_tokens(self, spatial: Tensor) -> Tensor:
        """Return the LQ latent [B, C, h, w] as tokens [B, m, D] by the transformer's own patch embedding (1.9)."""
        if self.config.spatial_path:
            spatial = torch.cat([spatial, torch.zeros_like(spatial)], 1)
        return self.transformer.patch_embed(spatial)

    def forward(self, x_t: Tensor, sigma: Tensor, tokens: Tensor, spatial: Tensor) -> Tensor:
        """Return the velocity [B, C, h, w].

        Args:
            x_t: noisy latent, [B, C, h, w].
            sigma: noise level, [B] in [0, 1].
            tokens: condition tokens, [B, T, caption_size].
            spatial: LQ latent, [B, C, h, w].
        """
        inputs = torch.cat([x_t, spatial], 1) if self.config.spatial_path else x_t
        velocity = self.transformer(inputs, tokens, 1000 * sigma, return_dict=False)[0]
        if self.config.spatial_path:
            gate = self.linear_gate[:, None, None]
            velocity = velocity + gate * linear_velocity(x_t, sigma, spatial, self.log_spread.exp()[:, None, None])
        return velocity


def linear_velocity(x_t: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """Return E[noise - x0 | x_t] [B, C, h, w] for x0 ~ N(centre, spread), in closed form.

    With D = (1 - sigma)^2 spread + sigma^2: ((sigma - (1 - sigma) spread) x_t - sigma centre) / D. It stays finite
    down to sigma 0.

    Args:
        x_t: noisy latent, [B, C, h, w].
        sigma: noise level, [B] in [0, 1].
        centre: mean of x0, here the LQ latent, [B, C, h, w].
        spread: variance of x0 around it, [C, 1, 1].
    """
    level = per_sample(sigma, x_t)
    total = (1 - level).square() * spread + level.square()
    return ((level - (1 - level) * spread) * x_t - level * centre) / total


def build_generator(config: GeneratorConfig, latent_channels: int, latent_size: int) -> Generator:
    """Return an untrained generator for latents [B, latent_channels, latent_size, latent_size]."""
    generator = Generator(
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
    )
    generator.start_from_scratch()
    return generator
