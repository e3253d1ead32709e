"""The LQ encoder: the codec's encoder, trained further to see the HQ latent in an LQ image (reference-method 1.9)."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_dc import Encoder
from torch import Tensor


class LqEncoder(ModelMixin, ConfigMixin):
    """Maps LQ images [B, 3, H, W] in [0, 1] to scaled latents [B, C, h, w]."""

    @register_to_config
    def __init__(self, scaling_factor: float, layout: dict[str, Any]) -> None:  # noqa: ARG002 (recorded by diffusers)
        super().__init__()
        self.encoder = Encoder(**layout)

    @classmethod
    def from_codec(cls, codec: AutoencoderDC) -> LqEncoder:
        """Return a copy of a codec's encoder."""
        config = codec.config
        arguments = {
            "in_channels": config.in_channels,
            "latent_channels": config.latent_channels,
            "attention_head_dim": config.attention_head_dim,
            "block_type": config.encoder_block_types,
            "block_out_channels": config.encoder_block_out_channels,
            "layers_per_block": config.encoder_layers_per_block,
            "qkv_multiscales": config.encoder_qkv_multiscales,
            "downsample_block_type": config.downsample_block_type,
            "out_shortcut": config.encoder_out_shortcut,
        }
        copy = cls(config.scaling_factor, arguments)
        copy.encoder.load_state_dict(codec.encoder.state_dict())
        return copy

    def forward(self, lq: Tensor) -> Tensor:
        """Return ``scaling_factor * encoder(2 * lq - 1)``."""
        return self.encoder((2 * lq - 1).to(self.dtype)) * self.config.scaling_factor
