"""The full preset without memory: names, shapes, parameters and operations of the published model."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import SiglipVisionConfig, SiglipVisionModel

from numerics import published
from prefrestore import configfile
from prefrestore.commands import model as commands
from prefrestore.config import Config
from prefrestore.models.adapters import ATTENTION
from prefrestore.models.footprint import Networks, build_networks, decoding_flops, flops, generator_flops, parameters
from prefrestore.models.integrator import vocabulary_of
from prefrestore.models.reference_layout import STAGE_A, TOWER, sorted_out
from prefrestore.models.reference_tokenizer import unread_blocks


@pytest.fixture(scope="module")
def full(repository: Path) -> Config:
    return configfile.load(repository / "presets" / "full.yaml")


@pytest.fixture(scope="module")
def networks(full: Config) -> Networks:
    return build_networks(full)


def millions(module: torch.nn.Module) -> float:
    return parameters(module) / 1e6


def test_sizes_are_the_published_ones(networks: Networks) -> None:
    """Reference-method section 0; the generator's additions are left out of its number."""
    assert millions(networks.integrator) == pytest.approx(1854.26, abs=0.005)
    added = 32 * 2240 + sum(value.numel() for value in networks.generator.transformer.gain.parameters())
    assert (parameters(networks.generator) - added) / 1e6 == pytest.approx(1604.64, abs=0.005)
    assert millions(networks.codec.encoder) == pytest.approx(153.0, abs=0.05)
    assert millions(networks.lq_encoder) == pytest.approx(153.0, abs=0.05)
    assert millions(networks.codec.decoder) == pytest.approx(159.2, abs=0.05)
    assert millions(networks.connectors.diffusion_connector) == pytest.approx(10.03, abs=0.005)
    assert millions(networks.connectors.vae_connector) == pytest.approx(10.48, abs=0.005)
    blocks = millions(networks.generator.transformer.transformer_blocks)
    assert blocks == pytest.approx(1558.59, abs=0.005)


def test_tower_is_siglip_without_what_is_not_read(networks: Networks) -> None:
    """428.2 M with the last block and the pooling head; 729 tokens of 384 px."""
    tower = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    with torch.device("meta"):
        whole = SiglipVisionModel(tower)
    assert millions(whole) == pytest.approx(428.2, abs=0.05)
    unread = parameters(whole.head) + parameters(whole.encoder.layers[26])
    assert parameters(networks.image_tokenizer.vision_tower) == parameters(whole) - unread
    assert networks.image_tokenizer.num_tokens == 729
    assert networks.integrator.config.vocab_size == 217210
    assert vocabulary_of(networks.integrator).first_code == 151674


def test_names_and_shapes_are_those_of_the_published_layout(networks: Networks) -> None:
    """Every published tensor, written out from the description, has its place here and its shape; none is left."""
    shapes = published.qwen_shapes(217210, (2048, 28, 16, 8, 128, 6144))
    shapes |= published.prefixed(TOWER, published.ta_tok_shapes((1152, 4304, 27, 14, 27, 65536, 1536)))
    shapes |= published.prefixed("model.sana.", published.sana_shapes((2240, 20, 2304, 32)))
    shapes |= published.prefixed("model.", published.connector_shapes(2048, 2240, 2304))
    codec = {f"model.sana_vae.{name}": tuple(value.shape) for name, value in networks.codec.state_dict().items()}
    weights = {name: torch.empty(shape, device="meta") for name, shape in (shapes | codec).items()}
    parts = sorted_out(weights, (*unread_blocks(networks.image_tokenizer, TOWER), *STAGE_A), "full")
    additions = ("transformer.gain.", "position_projection.", "lm_head.")
    for component, tensors in parts.items():
        own = {
            name: tuple(value.shape)
            for name, value in getattr(networks, component).state_dict().items()
            if not name.startswith(additions) and not (component == "codec" and name.startswith("encoder."))
        }
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if component == "generator":
            assert found.pop("transformer.patch_embed.proj.weight") == (2240, 32, 1, 1)
            assert own.pop("transformer.patch_embed.proj.weight") == (2240, 64, 1, 1)
        assert own == found, component


def test_adapters_have_320_tensors(networks: Networks) -> None:
    config = peft.LoraConfig(r=32, lora_alpha=64, target_modules=list(ATTENTION))
    with torch.device("meta"):
        adapted = build_adapted(networks, config)
    names = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert len(names) == 320
    total = sum(value.numel() for name, value in adapted.named_parameters() if "lora_" in name)
    assert total / 1e6 == pytest.approx(22.94, abs=0.005)
    name = "base_model.model.transformer_blocks.19.attn2.to_out.0.lora_B.default.weight"
    assert dict(adapted.named_parameters())[name].shape == (2240, 32)


def build_adapted(networks: Networks, config: peft.LoraConfig) -> peft.PeftModel:
    import copy

    return peft.get_peft_model(copy.deepcopy(networks.generator.transformer), config)


@pytest.mark.parametrize(("tokens", "tera"), [(986, 1.157), (730, 1.038), (256, 0.816), (1, 0.697)])
def test_operations_of_a_velocity(networks: Networks, tokens: int, tera: float) -> None:
    """Reference-method 1.7; the additions are below a hundred-thousandth of it."""
    assert generator_flops(networks, tokens) / 1e12 == pytest.approx(tera, abs=0.0006)


def test_operations_of_codec_and_integrator(networks: Networks) -> None:
    """Reference-method 1.8 and section 5: encode 1.29, decode 2.09, prompt 2.1, second pass over 1486 positions 4.2."""
    image, latent = torch.empty(1, 3, 512, 512, device="meta"), torch.empty(1, 32, 16, 16, device="meta")
    assert flops(lambda: networks.codec.encode(image)) / 1e12 == pytest.approx(1.29, abs=0.005)
    assert flops(lambda: networks.codec.decode(latent)) / 1e12 == pytest.approx(2.09, abs=0.005)
    prompt, said = decoding_flops(networks, 757)
    assert prompt / 1e12 == pytest.approx(2.1, rel=0.15)
    assert said / 1e12 == pytest.approx(2.7, rel=0.15)


def test_show_prints_a_preset(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    done = CliRunner().invoke(commands.command, ["show", "--preset", "smoke"], catch_exceptions=False)
    assert done.exit_code == 0
    rows = {line.split("  ")[0]: line for line in done.output.splitlines()}
    assert {"image_tokenizer", "integrator, decoding", "generator", "codec, decoder", "all"} <= rows.keys()
