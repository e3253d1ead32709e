"""The LQ encoder: sees the HQ latent in an LQ image (reference-method 1.9), with or without a corrector (ADR 10)."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_dc import Encoder
from torch import Tensor

from prefrestore.models.baseline import RegressionUNet


class LqEncoder(ModelMixin, ConfigMixin):
    """Maps LQ images [B, 3, H, W] in [0, 1] to scaled latents [B, C, h, w].

    Without a corrector it is the codec's encoder, trained further on LQ images (published). With one, a U-Net of that
    width corrects the image, and the codec's own encoder reads what came out.
    """

    @register_to_config
    def __init__(self, scaling_factor: float, layout: dict[str, Any], corrector_width: int = 0) -> None:  # noqa: ARG002 (recorded by diffusers)
        super().__init__()
        self.encoder = Encoder(**layout)
        self.corrector = RegressionUNet(corrector_width) if corrector_width else None

    @classmethod
    def from_codec(cls, codec: AutoencoderDC, corrector_width: int = 0) -> LqEncoder:
        """Return a copy of a codec's encoder, behind a corrector of some width that does nothing yet."""
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
        copy = cls(config.scaling_factor, arguments, corrector_width)
        copy.encoder.load_state_dict(codec.encoder.state_dict())
        return copy

    def corrected(self, lq: Tensor) -> Tensor:
        """Return the LQ images as the encoder sees them, not clipped."""
        return lq if self.corrector is None else self.corrector(lq.to(self.dtype))

    def encode(self, seen: Tensor) -> Tensor:
        """Return ``scaling_factor * encoder(2 * seen - 1)`` of corrected images."""
        return self.encoder((2 * seen - 1).to(self.dtype)) * self.config.scaling_factor

    def forward(self, lq: Tensor) -> Tensor:
        """Return the scaled latents of LQ images."""
        return self.encode(self.corrected(lq))
