"""The preference network on a frozen CLIP or SigLIP: what it sees, what is trained and kept, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from prefrestore.errors import UserError
from prefrestore.rewards.backbone import Backbone, load_backbone
from prefrestore.rewards.base import References
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork, load_network, save_network
from prefrestore.rewards.preference import PreferenceReward
from tests.support.clip import save_clip, save_siglip

TEXTS = ["abc", "hgf ab", ""]


def pictures(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[save_clip, save_siglip])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save: Callable[[Path], Path] = request.param
    return save(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder))


@pytest.fixture
def network(folder: Path) -> PreferenceNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(8, 2, 2, 4, load_backbone(str(folder)).config)
    return PreferenceNetwork(config).eval().requires_grad_(False)


def test_patches_are_those_after_the_named_layers(folder: Path, backbone: Backbone) -> None:
    model = AutoModel.from_pretrained(folder).eval()
    wide, normal = (backbone.tokens(images, [2, 4]) for images in (pictures(0), pictures(0)))
    assert [tokens.shape for tokens in wide] == [(3, 9, 16), (3, 9, 16)]
    assert torch.equal(wide[1], normal[1])
    kept: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.vision_model.encoder.layers):
        layer.register_forward_hook(
            lambda _layer, _inputs, out, place=number: kept.update(
                {place: out if isinstance(out, torch.Tensor) else out[0]}
            )
        )
    clip = model.config.model_type == "clip"
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073) if clip else (0.5, 0.5, 0.5))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711) if clip else (0.5, 0.5, 0.5))[:, None, None]
    sized = torch.nn.functional.interpolate(pictures(0), (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        model.vision_model(pixel_values=(sized - mean) / std)
    for tokens, layer in zip(wide, (1, 3), strict=True):
        states = kept[layer][:, 1:] if clip else kept[layer]
        centred = states - states.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_a_text_does_not_depend_on_its_neighbours(backbone: Backbone) -> None:
    torch.testing.assert_close(backbone.texts(["a", "abcdefgh ab", "a"])[[0, 2]], backbone.texts(["a"]).expand(2, -1))


def test_lq_candidate_and_text_count_and_hq_does_not(network: PreferenceNetwork) -> None:
    reward = PreferenceReward(network)
    given = References(pictures(0), pictures(1), TEXTS, None, TEXTS)
    score = reward.score(pictures(2), given)
    assert torch.equal(score, reward.score(pictures(2), References(pictures(0), None, TEXTS, None, TEXTS)))
    for changed in (
        reward.score(pictures(3), given),
        reward.score(pictures(2), References(pictures(3), None, TEXTS, None, TEXTS)),
        reward.score(pictures(2), References(pictures(0), None, ["fed", "a", "b"], None, TEXTS)),
    ):
        assert (changed - score).abs().min() > 1e-6


def test_an_lq_image_is_looked_at_once_for_all_its_candidates(
    network: PreferenceNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    lq, texts = pictures(0, 2).repeat_interleave(3, 0), ["abc"] * 3 + [""] * 3
    apart = torch.cat(
        [network(lq[row : row + 1], pictures(4, 6)[row : row + 1], texts[row : row + 1]) for row in range(6)], 1
    )
    looked: list[int] = []
    tokens = Backbone.tokens
    monkeypatch.setattr(
        Backbone, "tokens", lambda self, images, depths: (looked.append(len(images)), tokens(self, images, depths))[1]
    )
    members = PreferenceReward(network).members(pictures(4, 6), References(lq, None, texts, None, texts))
    torch.testing.assert_close(members, apart)
    assert looked == [2, 6]


def test_only_the_heads_take_gradients_and_are_kept(folder: Path, tmp_path: Path) -> None:
    network = PreferenceNetwork(NetworkConfig(8, 2, 2, 4, load_backbone(str(folder)).config))
    network(pictures(0), pictures(1), TEXTS).sum().backward()
    assert all(value.grad is not None for name, value in network.named_parameters() if name != "tie_logit")
    save_network(network, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"members", "tie_logit", "temperature", "offset"}
    loaded = load_network(tmp_path)
    torch.testing.assert_close(
        loaded(pictures(0), pictures(1), TEXTS), network.requires_grad_(False)(pictures(0), pictures(1), TEXTS)
    )


def test_a_backbone_of_other_weights_is_refused(tmp_path: Path) -> None:
    there = save_siglip(tmp_path / "siglip")
    (tmp_path / "reward").mkdir()
    save_network(PreferenceNetwork(NetworkConfig(8, 1, 1, 4, load_backbone(str(there)).config)), tmp_path / "reward")
    save_siglip(there, seed=1)
    load_backbone.cache_clear()
    with pytest.raises(UserError, match="is not the model that the reward was trained on"):
        load_network(tmp_path / "reward")
    shutil.rmtree(there)
    load_backbone.cache_clear()
    with pytest.raises(UserError, match="no model at"):
        load_network(tmp_path / "reward")


def test_what_is_no_whole_safe_backbone_is_one_line(tmp_path: Path) -> None:
    # not on this machine, and no network is asked
    with pytest.raises(UserError, match=r"train_reward: backbone: no model at nobody/nothing .*name on the hub"):
        load_backbone("nobody/nothing")
    pickled = save_siglip(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no Siglip model at"):
        load_backbone(str(pickled))
    partial = save_clip(tmp_path / "partial")
    tensors = load_file(partial / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="visual_projection.weight is missing"):
        load_backbone(str(partial))
    other = tmp_path / "other"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=8)).save_pretrained(other)
    with pytest.raises(UserError, match="type clip_text_model: choose one of clip or siglip"):
        load_backbone(str(other))
