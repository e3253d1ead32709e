"""The image tokenizer: a SigLIP-type vision tower and a SimVQ codebook (TA-Tok, reference-method 1.3)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel


class ImageTokenizer(ModelMixin, ConfigMixin):
    """Maps an image to ``(image_size / patch_size) ** 2`` code ids by cosine similarity to a SimVQ codebook.

    SimVQ: the codebook is an embedding passed through one learned linear layer (arXiv 2411.02038).
    ``feature_layer`` is the hidden state read: the last here; one block before the last in TA-Tok.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 (diffusers stores these arguments as the model's configuration)
        self,
        image_size: int = 384,
        patch_size: int = 14,
        hidden_size: int = 1152,
        layers: int = 27,
        heads: int = 16,
        codebook_size: int = 65536,
        code_dim: int = 1536,
        feature_layer: int = -2,  # noqa: ARG002 (recorded by diffusers)
    ) -> None:
        super().__init__()
        tower = SiglipVisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vision_use_head=False,
        )
        self.vision_tower = SiglipVisionModel(tower)
        self.task_layer = nn.Linear(hidden_size, hidden_size)
        self.in_linear = nn.Linear(hidden_size, code_dim)
        self.codebook = nn.Embedding(codebook_size, code_dim)
        self.codebook_projection = nn.Linear(code_dim, code_dim)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return int(self.config.image_size // self.config.patch_size)

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.grid**2

    def features(self, images: Tensor) -> Tensor:
        """Return unit vectors [B, num_tokens, code_dim] of images [B, 3, H, W] in [0, 1] of any size."""
        side = self.config.image_size
        pixels = functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        output = self.vision_tower(2 * pixels - 1, output_hidden_states=True)
        hidden = output.hidden_states[self.config.feature_layer]
        return functional.normalize(self.in_linear(torch.tanh(self.task_layer(hidden))), dim=-1)

    def codes(self) -> Tensor:
        """Return the projected, normalised codebook [codebook_size, code_dim]."""
        return functional.normalize(self.codebook_projection(self.codebook.weight), dim=-1)

    @torch.no_grad()
    def ids(self, images: Tensor) -> Tensor:
        """Return code ids [B, num_tokens] of images [B, 3, H, W] in [0, 1]."""
        return (self.features(images) @ self.codes().T).argmax(-1)
