"""Connectors: integrator states and LQ latent tokens become the generator's condition (reference-method 1.6)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from prefrestore.config import GeneratorConfig
from prefrestore.models.integrator import text_size_of

ROOT_5_5 = 5.5**0.5
"""Initial weight of the diffusion connector's RMSNorm, hence the RMS of its output."""


def _connector(in_size: int, out_size: int, norm_weight: float) -> nn.Sequential:
    norm = nn.RMSNorm(out_size, eps=1e-5)
    nn.init.constant_(norm.weight, norm_weight)
    return nn.Sequential(nn.Linear(in_size, out_size), nn.GELU("tanh"), nn.Linear(out_size, out_size), norm)


class Connectors(ModelMixin, ConfigMixin):
    """Projects queries [B, n + 1, D_lm] and LQ tokens [B, m, D_dit] to the caption size and joins them.

    With ``position`` every token but ``<S0>`` gets a 2-D sine-cosine code of its place through one linear layer
    that starts at zero, so that weights published without it load unchanged. With ``shared_norm`` both connectors
    end in the same RMSNorm, the queries' one, as in checkpoints that were built at once (reference-method 1.6).
    With ``query_path`` C > 0 each query but that of ``<S0>`` also says, by one linear layer that starts at zero, what
    lies at its place in the image: it is added to the LQ latent of C channels.
    With ``text`` they also know mean and deviation of the integrator's text states, so that what differs between texts,
    a small part of them, reaches the generator in full.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 (diffusers stores these arguments as the model's configuration)
        self,
        query_size: int = 2048,
        lq_size: int = 2240,
        caption_size: int = 2304,
        query_grid: int = 27,
        lq_grid: int = 16,
        position: bool = True,
        shared_norm: bool = False,
        text: bool = False,
        query_path: int = 0,
        latent_size: int = 16,
    ) -> None:
        super().__init__()
        if query_path:
            cell = max(1, round(latent_size / query_grid))
            self.placement = nn.Linear(query_size, query_path * cell**2, bias=False)
            nn.init.zeros_(self.placement.weight)
        if text:
            self.register_buffer("text_mean", torch.zeros(text_size_of(query_size)))
            self.register_buffer("text_deviation", torch.ones(text_size_of(query_size)))
        self.diffusion_connector = _connector(query_size, caption_size, ROOT_5_5)
        self.vae_connector = _connector(lq_size, caption_size, 1.0)
        if shared_norm:
            del self.vae_connector[3]
        if position:
            size = 64
            self.position_projection = nn.Linear(size, caption_size, bias=False)
            nn.init.zeros_(self.position_projection.weight)
            codes = [
                torch.zeros(1, size),
                torch.as_tensor(get_2d_sincos_pos_embed(size, query_grid, base_size=16, output_type="pt")),
                torch.as_tensor(get_2d_sincos_pos_embed(size, lq_grid, base_size=16, output_type="pt")),
            ]
            self.register_buffer("position_codes", torch.cat(codes).float(), persistent=False)

    def forward(self, queries: Tensor, lq_tokens: Tensor) -> Tensor:
        """Return condition tokens [B, n + 1 + m, caption_size]."""
        from_lq = self.vae_connector(lq_tokens)
        if self.config.shared_norm:
            from_lq = self.diffusion_connector[3](from_lq)
        tokens = torch.cat([self.diffusion_connector(queries), from_lq], 1)
        if self.config.position:
            tokens = tokens + self.position_projection(self.position_codes.to(self.position_projection.weight.dtype))
        return tokens

    def placed(self, queries: Tensor) -> Tensor | float:
        """Return what queries [B, n + 1, D_lm] say of each place, [B, C, h, w]; 0 without ``query_path``."""
        if not self.config.query_path:
            return 0.0
        grid, size = self.config.query_grid, self.config.latent_size
        said = self.placement(queries[:, 1:]).transpose(1, 2).unflatten(2, (grid, grid))
        said = functional.pixel_shuffle(said, max(1, round(size / grid)))
        return functional.interpolate(said, size=(size, size), mode="bilinear", align_corners=False)

    def measure_text(self, states: Tensor) -> None:
        """Take mean and deviation over the text states [M, S] of those samples that have a text."""
        given = states[states.any(1)]
        if self.config.text and len(given) > 1:
            self.text_mean.copy_(given.mean(0))
            self.text_deviation.copy_(given.std(0).clamp_min(1e-6))

    def text(self, states: Tensor) -> Tensor:
        """Return text states [N, S] standardised, zero where there is no text; [N, 0] without ``text``."""
        if not self.config.text:
            return states[:, :0]
        return (states - self.text_mean) / self.text_deviation * states.any(1, keepdim=True)


def build_connectors(
    config: GeneratorConfig,
    query_size: int,
    query_grid: int,
    latent_shape: tuple[int, int],
    *,
    shared_norm: bool = False,
) -> Connectors:
    """Return untrained connectors between states of size ``query_size`` and a generator of the given sizes.

    ``latent_shape`` is a latent's (channels, side).
    """
    channels, latent_size = latent_shape
    return Connectors(
        query_size=query_size,
        lq_size=config.heads * config.head_dim,
        caption_size=config.caption_size,
        query_grid=query_grid,
        lq_grid=latent_size // config.patch_size,
        position=config.condition_position,
        shared_norm=shared_norm,
        text=config.text_modulation,
        query_path=channels if config.query_path else 0,
        latent_size=latent_size,
    )
