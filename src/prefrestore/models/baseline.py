"""The yardstick: a small regression U-Net on pixel-unshuffled LQ images, predicting a residual."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional


class RegressionUNet(ModelMixin, ConfigMixin):
    """Maps LQ images [B, 3, H, W] in [0, 1] to an estimate of the mean HQ image, same shape, not clipped."""

    @register_to_config
    def __init__(self, width: int = 32, groups: int = 8) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            in_channels=12,
            out_channels=12,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            block_out_channels=(width, 2 * width, 3 * width),
            layers_per_block=1,
            norm_num_groups=groups,
            add_attention=False,
        )
        torch.nn.init.zeros_(self.unet.conv_out.weight)
        torch.nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, lq: Tensor) -> Tensor:
        """Return the restored images, not clipped."""
        residual = self.unet(functional.pixel_unshuffle(2 * lq - 1, 2), 0).sample
        return lq + functional.pixel_shuffle(residual, 2)


def load_baseline(folder: Path) -> RegressionUNet:
    """Load the ``baseline`` artifact for inference."""
    return RegressionUNet.from_pretrained(folder).eval().requires_grad_(False)


@torch.no_grad()
def restore_baseline(baseline: RegressionUNet, lq: Tensor) -> Tensor:
    """Return restored images [N, 3, H, W] in [0, 1]."""
    return baseline(lq).clamp(0, 1)
