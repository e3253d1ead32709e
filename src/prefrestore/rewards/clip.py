"""Scorers of the CLIP family: how well an image fits its text. One class covers CLIPScore and PickScore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

from prefrestore.rewards.backbone import pixel_values, read_model, text_states
from prefrestore.rewards.base import References

CLIP_SCORE_SCALE = 2.5
"""Hessel et al., arXiv 2104.08718, section 3."""
FAMILY = ("clip_score", "pick_score")


@dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class ClipReward:
    """``clip_score``: ``2.5 max(cos, 0)`` (Hessel et al.); ``pick_score``: ``exp(logit_scale) cos`` (arXiv 2305.01569).

    The model is read when the first image comes, from a folder or by its name on the hub.
    """

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self._place = place
        self._loaded: _Loaded | None = None
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def score(self, restored: Tensor, references: References) -> Tensor:
        """Score ``restored`` [N, 3, H, W]; NaN where there is no text. HQ is not looked at.

        Raises:
            UserError: the model is not there.
        """
        values = torch.full((len(restored),), torch.nan)
        rows = [row for row, text in enumerate(references.texts) if text.strip()]
        if not rows:
            return values
        loaded = self._load()
        image = functional.normalize(self._image_features(loaded, restored[rows]), dim=1)
        text = functional.normalize(self._text_features(loaded, [references.texts[row] for row in rows]), dim=1)
        cosine = (image * text).sum(dim=1)
        scaled = (
            loaded.model.logit_scale.exp() * cosine if self.name == "pick_score" else CLIP_SCORE_SCALE * cosine.relu()
        )
        values[rows] = scaled.float().cpu()
        return values

    def _load(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = _Loaded(*read_model(self.name, self._place, CLIPModel))
        return self._loaded

    def _image_features(self, loaded: _Loaded, images: Tensor) -> Tensor:
        pooled = loaded.model.vision_model(pixel_values=pixel_values(images, loaded.model)).pooler_output
        return loaded.model.visual_projection(pooled)

    def _text_features(self, loaded: _Loaded, texts: Sequence[str]) -> Tensor:
        """Return features [N, D]; each text is read once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            pooled = text_states(new, loaded.model, loaded.tokenizer)
            self._texts |= dict(zip(new, loaded.model.text_projection(pooled), strict=True))
        return torch.stack([self._texts[text] for text in texts])
