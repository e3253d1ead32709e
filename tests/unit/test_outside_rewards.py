"""Rewards whose weights are no part of the project: LPIPS and the CLIP family, on networks made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizerFast

from prefrestore.errors import UserError
from prefrestore.models.lpips import Lpips, save_lpips
from prefrestore.rewards.backbone import CLIP_MEAN, CLIP_STD
from prefrestore.rewards.base import References
from prefrestore.rewards.clip import ClipReward
from prefrestore.rewards.composite import Sources, build_rewards
from prefrestore.rewards.faces import FaceReader
from prefrestore.rewards.lpips import REMEMBERED, LpipsReward
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork
from prefrestore.rewards.preference import PreferenceReward
from tests.support.clip import save_clip


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def references(hq: torch.Tensor | None, texts: list[str]) -> References:
    return References(pictures(len(texts)), hq, texts, None, [str(row) for row in range(len(texts))])


@pytest.fixture(scope="module")
def network() -> Lpips:
    torch.manual_seed(0)
    return Lpips().eval().requires_grad_(False)


class Counting(Lpips):
    """Counts the images it looks at."""

    looked = 0

    def features(self, images: torch.Tensor) -> Any:
        self.looked += len(images)
        return super().features(images)


def test_lpips_is_minus_the_distance_and_looks_at_an_hq_image_once(network: Lpips) -> None:
    counting = Counting().eval()
    counting.load_state_dict(network.state_dict())
    reward = LpipsReward(Path("unused"), counting)
    hq = pictures(2, 1).repeat_interleave(4, dim=0)
    restored = (hq + 0.1 * torch.randn(hq.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    scores = reward.score(restored, references(hq, [""] * 8))
    torch.testing.assert_close(scores, -network(restored, hq), rtol=1e-4, atol=1e-6)
    assert counting.looked == 8 + 2
    assert torch.equal(reward.score(restored, references(hq, [""] * 8)), scores)
    assert counting.looked == 8 + 2 + 8
    assert float(reward.score(hq[:1], references(hq[:1], [""]))) == pytest.approx(0, abs=1e-9)


def test_lpips_forgets_the_oldest_and_still_judges(network: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefrestore.rewards.lpips.REMEMBERED", 3)
    assert REMEMBERED == 64
    reward = LpipsReward(Path("unused"), network)
    hq = pictures(5, 1)
    for _ in range(2):
        scores = reward.score(pictures(5, 2), references(hq, [""] * 5))
        torch.testing.assert_close(scores, -network(pictures(5, 2), hq), rtol=1e-4, atol=1e-6)
    assert len(reward._hq) == 3


def test_lpips_says_nan_or_where_weights_are_missing(network: Lpips, tmp_path: Path) -> None:
    assert LpipsReward(tmp_path / "no").score(pictures(2), references(None, ["", ""])).isnan().all()
    small = torch.rand(1, 3, 8, 8)
    assert LpipsReward(tmp_path / "no").score(small, references(small, [""])).isnan().all()
    with pytest.raises(UserError, match="no such file"):
        LpipsReward(tmp_path / "no").score(pictures(1), references(pictures(1), [""]))
    save_lpips(network.state_dict(), tmp_path / "lpips.safetensors")
    loaded = LpipsReward(tmp_path / "lpips.safetensors").score(pictures(1), references(pictures(1, 3), [""]))
    torch.testing.assert_close(loaded, -network(pictures(1), pictures(1, 3)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_and_pick_score_are_their_formulas(clip: Path) -> None:
    images, texts = pictures(3), ["abc", "", "hgf ab"]
    found = {
        name: ClipReward(name, str(clip)).score(images, references(None, texts))
        for name in ("clip_score", "pick_score")
    }
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizerFast.from_pretrained(clip)
    for row in (0, 2):
        sized = functional.interpolate(images[row : row + 1], (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (sized - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        with torch.no_grad():
            whole = model(**tokenizer([texts[row]], return_tensors="pt"), pixel_values=pixels)
        cosine = float((whole.image_embeds * whole.text_embeds).sum())
        assert float(found["clip_score"][row]) == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
        assert float(found["pick_score"][row]) == pytest.approx(float(whole.logits_per_image), abs=1e-4)
    assert found["clip_score"].isnan().tolist() == [False, True, False]


def test_a_text_does_not_depend_on_its_neighbours(clip: Path) -> None:
    reward = ClipReward("pick_score", str(clip))
    together = reward.score(pictures(2), references(None, ["a", "abcdefgh ab"]))
    alone = ClipReward("pick_score", str(clip)).score(pictures(2)[:1], references(None, ["a"]))
    torch.testing.assert_close(together[:1], alone)


def test_a_missing_clip_is_one_line_and_only_when_it_is_asked(tmp_path: Path) -> None:
    reward = ClipReward("pick_score", str(tmp_path / "none"))
    assert reward.score(pictures(1), references(None, [""])).isnan().all()
    with pytest.raises(UserError, match="no CLIP model at"):
        reward.score(pictures(1), references(None, ["abc"]))


def test_rewards_are_built_by_name(clip: Path) -> None:
    sources = Sources("lpips.safetensors", {"pick_score": str(clip)})
    preference = PreferenceReward(PreferenceNetwork(NetworkConfig(4, 1, 1, 8)))
    reader = FaceReader(1)
    names = ["lpips", "pick_score", "structure"]
    assert [reward.name for reward in build_rewards(names, preference, reader, sources)] == names
    with pytest.raises(UserError, match="train_reward.clip_models: clip_score"):
        build_rewards(["clip_score"], preference, reader, sources)
    with pytest.raises(UserError, match="train_reward.lpips_weights"):
        build_rewards(["lpips"], preference, reader, replace(sources, lpips_weights=None))
