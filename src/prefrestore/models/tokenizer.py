"""The image tokenizer: a SigLIP-type vision tower and a SimVQ codebook (TA-Tok, reference-method 1.3)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from prefrestore.config import TokenizerConfig


class ImageTokenizer(ModelMixin, ConfigMixin):
    """Maps an image to ``(image_size // patch_size) ** 2`` code ids by cosine similarity to a SimVQ codebook.

    SimVQ: the codebook is an embedding passed through one learned linear layer (arXiv 2411.02038).
    ``feature_layer`` is the hidden state read, counted from the end: the last, or one block before it in TA-Tok.
    Blocks above it are not built, and no final norm is applied. TA-Tok can pool its grid; here, as in the published
    restorer, it never does. Pixels beyond the last whole patch are not seen: 384 px give 27 x 27 patches of 14.
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
        feature_layer: int = -2,
        ffn_size: int | None = None,
    ) -> None:
        super().__init__()
        tower = SiglipVisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            intermediate_size=ffn_size or 4 * hidden_size,
            num_hidden_layers=layers + 1 + feature_layer,
            num_attention_heads=heads,
            vision_use_head=False,
        )
        self.vision_tower = SiglipVisionModel(tower)
        self.task_layer = nn.Linear(hidden_size, hidden_size)
        self.in_linear = nn.Linear(hidden_size, code_dim)
        self.codebook = nn.Embedding(codebook_size, code_dim)
        self.codebook_projection = nn.Linear(code_dim, code_dim)
        self._codes: tuple[object, Tensor] | None = None

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
        return self.encode(self._resized(images).to(images.device, self.dtype))

    def encode(self, pixels: Tensor) -> Tensor:
        """Return unit vectors [B, num_tokens, code_dim] of images [B, 3, image_size, image_size] in [0, 1]."""
        tower = self.vision_tower
        hidden = tower.encoder(inputs_embeds=tower.embeddings(2 * pixels - 1)).last_hidden_state
        return functional.normalize(self.in_linear(torch.tanh(self.task_layer(hidden))), dim=-1)

    def _resized(self, images: Tensor) -> Tensor:
        """Return images as the tower takes them, [B, 3, side, side] in [0, 1].

        Resized in 8 bits, on the CPU, as image processors do: ids hang on the last level of a pixel.
        """
        levels = images.detach().cpu().clamp(0, 1).mul(255).round().byte()
        side = (self.config.image_size, self.config.image_size)
        return functional.interpolate(levels, side, mode="bicubic", antialias=True).float() / 255

    def codes(self) -> Tensor:
        """Return the projected, normalised codebook [codebook_size, code_dim]."""
        return functional.normalize(self.codebook_projection(self.codebook.weight), dim=-1)

    @torch.no_grad()
    def ids(self, images: Tensor) -> Tensor:
        """Return code ids [B, num_tokens] of images [B, 3, H, W] in [0, 1]."""
        return (self.features(images) @ self._kept_codes().T).argmax(-1)

    def _kept_codes(self) -> Tensor:
        """Return :meth:`codes`, computed again only where the weights have changed since."""
        weights = (self.codebook.weight, self.codebook_projection.weight, self.codebook_projection.bias)
        state = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        if self._codes is None or self._codes[0] != state:
            self._codes = (state, self.codes())
        return self._codes[1]


def build_tokenizer(config: TokenizerConfig, feature_layer: int = -1) -> ImageTokenizer:
    """Return an untrained tokenizer; it reads the last layer of its vision tower unless told otherwise."""
    return ImageTokenizer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        codebook_size=config.codebook_size,
        code_dim=config.code_dim,
        ffn_size=config.ffn_size,
        feature_layer=feature_layer,
    )
