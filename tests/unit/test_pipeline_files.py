"""A saved pipeline comes back equal or not at all; adapters act on their own base or not at all; calls are checked."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prefrestore import artifacts, configfile
from prefrestore.config import LoraConfig
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.models.adapters import ATTENTION, add_roles, role_tensors, save_policy
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.pipeline import PrefRestorePipeline, SamplingStep, to_tensor_of
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.sft.pretrain import build_pipeline

SIDE = 32
LORA = LoraConfig(rank=4, alpha=8)


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def saved(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained pipeline at the smoke preset."""
    config = configfile.load(repository / "presets" / "smoke.yaml")
    torch.manual_seed(0)
    faces = np.stack([np.asarray(picture(seed)) for seed in range(12)])
    pairs = PairSet(
        ids=tuple("abcdefghijkl"),
        captions=("a person with glasses",) * 12,
        hq=faces,
        lq=faces[:, None],
        records=(),
        landmarks=np.full((12, 68, 2), np.nan, np.float32),
    )
    codec = build_codec(config.train_codec)
    start_linear(codec, torch.from_numpy(faces).movedim(-1, 1).float() / 255)
    tokenizer = build_tokenizer(config.train_codec.tokenizer)
    folder = tmp_path_factory.mktemp("saved") / "base"
    build_pipeline(config.pretrain, codec.eval(), tokenizer.eval(), pairs).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(saved: Path) -> PrefRestorePipeline:
    return PrefRestorePipeline.from_pretrained(saved)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def shown(pipeline: PrefRestorePipeline) -> bytes:
    return pipeline(picture(), seed=3, num_inference_steps=2).images[0].tobytes()


def test_index_lists_every_component(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text(encoding="utf-8"))
    parts = {"codec", "lq_encoder", "image_tokenizer", "text_tokenizer", "integrator", "connectors", "generator"}
    assert {name for name, value in index.items() if isinstance(value, list)} == parts
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}


def test_saving_and_loading_again_gives_equal_bytes(pipeline: PrefRestorePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "again")
    assert shown(PrefRestorePipeline.from_pretrained(tmp_path / "again")) == shown(pipeline)


def test_what_is_saved_does_not_say_where_it_was_loaded_from(saved: Path, tmp_path: Path) -> None:
    PrefRestorePipeline.from_pretrained(saved).save_pretrained(tmp_path / "again")
    files = [path for path in (tmp_path / "again").rglob("*.json") if path.parent.name != "text_tokenizer"]
    assert len(files) > 6
    for path in files:
        assert path.read_bytes() == (saved / path.relative_to(tmp_path / "again")).read_bytes()
        assert str(saved) not in path.read_text()


def test_half_precision_restores(saved: Path) -> None:
    half = PrefRestorePipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.generator.dtype == torch.bfloat16
    ours, whole = (
        np.asarray(one(picture(), num_inference_steps=2).images[0]).astype(float)
        for one in (half, PrefRestorePipeline.from_pretrained(saved))
    )
    assert np.abs(ours - whole).mean() < 4


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        PrefRestorePipeline.from_pretrained(folder)
    return str(raised.value)


def test_folders_that_are_no_restorer_are_refused(copy: Path, tmp_path: Path) -> None:
    assert "no restorer can be loaded" in _refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no saved pipeline" in _refused(tmp_path / "empty")
    index = copy / "model_index.json"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("PrefRestorePipeline", "SanaPipeline"), encoding="utf-8")
    assert "holds a SanaPipeline" in _refused(copy)
    index.write_text(text, encoding="utf-8")
    shutil.rmtree(copy / "connectors")
    assert "connectors is missing" in _refused(copy)


def test_an_index_that_names_other_programs_is_refused_before_they_are_imported(copy: Path) -> None:
    index = copy / "model_index.json"
    whole = json.loads(index.read_text(encoding="utf-8"))
    for part, listed in (
        ("codec", ["antigravity", "AutoencoderDC"]),
        ("codec", ["diffusers", "AutoencoderKL"]),
        ("codec", "diffusers"),
        ("text_tokenizer", ["antigravity", "Tokenizer"]),
        ("more", ["antigravity", "More"]),
    ):
        index.write_text(json.dumps(whole | {part: listed}), encoding="utf-8")
        assert f"model_index.json: {part} is no " in _refused(copy)
    assert "antigravity" not in sys.modules


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    """Diffusers only warns where a weight is missing, and fills it with noise."""
    file = copy / "connectors" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    name = "vae_connector.0.bias"
    save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
    assert f"{name} is missing" in _refused(copy)
    save_file(whole | {name: torch.zeros(3)}, file, metadata={"format": "pt"})
    assert f"{name} is stored as [3], its settings call for [64]" in _refused(copy)
    file.write_bytes(file.read_bytes()[:100])
    assert "is damaged or cut short" in _refused(copy)
    file.unlink()
    (copy / "connectors" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    assert "is pickled" in _refused(copy)


def policy(saved: Path, folder: Path) -> Path:
    """A policy of ours with an effect, for the base in ``saved``."""
    pipeline = PrefRestorePipeline.from_pretrained(saved)
    add_roles(pipeline, LORA, seed=0)
    tensors = {name: torch.randn_like(value) for name, value in role_tensors(pipeline, "policy").items()}
    folder.mkdir()
    save_policy(folder, tensors, LORA, artifacts.digest(saved))
    return folder


def published(saved: Path, folder: Path, scale: float = 1.0) -> Path:
    """An adapter as a PeftModel writes it: ``lora/`` and a second one below, of the old policy."""
    transformer = PrefRestorePipeline.from_pretrained(saved).generator.transformer
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=list(ATTENTION))
    model = peft.get_peft_model(transformer, config)
    model.add_adapter("old", replace(config))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(str(folder / "lora"))
    return folder


def test_our_policy_acts_and_goes(saved: Path, pipeline: PrefRestorePipeline, tmp_path: Path) -> None:
    base = shown(pipeline)
    pipeline.load_lora_weights(policy(saved, tmp_path / "policy"))
    assert shown(pipeline) != base
    with pytest.raises(UserError, match="an adapter is loaded already"):
        pipeline.load_lora_weights(tmp_path / "policy")
    with pytest.raises(UserError, match="carries an adapter"):
        pipeline.save_pretrained(tmp_path / "adapted")
    pipeline.unload_lora_weights()
    assert shown(pipeline) == base
    pipeline.save_pretrained(tmp_path / "clean")
    assert shown(PrefRestorePipeline.from_pretrained(tmp_path / "clean")) == base


def test_a_policy_of_another_base_is_refused(saved: Path, copy: Path, tmp_path: Path) -> None:
    folder = policy(saved, tmp_path / "policy")
    (copy / "note.txt").write_text("another base", encoding="utf-8")
    with pytest.raises(UserError, match="trained on another base"):
        PrefRestorePipeline.from_pretrained(copy).load_lora_weights(folder)


def test_published_adapter_computes_what_peft_does(saved: Path, pipeline: PrefRestorePipeline, tmp_path: Path) -> None:
    folder = published(saved, tmp_path / "checkpoint")
    assert len(load_file(folder / "lora" / "adapter_model.safetensors")) == 32
    assert (folder / "lora" / "old" / "adapter_config.json").is_file()
    x_t, sigma = pipeline.initial_noise([1]), torch.tensor([0.5])
    condition = pipeline.encode_condition(to_tensor_of(picture(), SIDE), [""])
    without = pipeline.velocity(x_t, sigma, condition)
    pipeline.load_lora_weights(folder)
    ours = pipeline.velocity(x_t, sigma, condition)
    other = PrefRestorePipeline.from_pretrained(saved)
    other.generator.transformer = peft.PeftModel.from_pretrained(other.generator.transformer, str(folder / "lora"))
    other.generator.transformer.patch_embed = other.generator.transformer.base_model.model.patch_embed
    assert torch.allclose(ours, other.generator(x_t, sigma, condition.tokens, condition.spatial), atol=1e-5)
    assert (ours - without).abs().max() > 0.01
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(folder / "lora" / "old")
    assert not torch.allclose(pipeline.velocity(x_t, sigma, condition), ours)


def test_adapters_without_effect_or_fit_are_refused(saved: Path, pipeline: PrefRestorePipeline, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as raised:
            pipeline.load_lora_weights(folder)
        return str(raised.value)

    base = shown(pipeline)
    assert "never trained" in refused(published(saved, tmp_path / "untrained", scale=0.0))
    assert "holds no adapter" in refused(tmp_path / "nowhere")
    folder = published(saved, tmp_path / "other") / "lora"
    settings = folder / "adapter_config.json"
    plain = settings.read_text(encoding="utf-8")
    settings.write_text(plain.replace('"use_dora": false', '"use_dora": true'), encoding="utf-8")
    assert "use_dora is set" in refused(folder)
    settings.write_text(plain, encoding="utf-8")
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    first = sorted(whole)[0]
    save_file({name: value for name, value in whole.items() if name != first}, file)
    assert "does not fit this base at transformer_blocks.0" in refused(folder)
    save_file(whole | {first: torch.randn(4, 7)}, file)
    assert "does not fit this base" in refused(folder)
    file.unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    assert "is pickled" in refused(folder)
    assert shown(pipeline) == base


def test_callback_sees_every_step(pipeline: PrefRestorePipeline) -> None:
    seen: list[SamplingStep] = []
    images = pipeline([picture(), picture(1)], num_inference_steps=3, callback=seen.append).images
    assert [(one.image, one.step) for one in seen] == [(i, s) for i in range(2) for s in (1, 2, 3)]
    assert seen[0].sigma == 1
    last = pipeline.decode(seen[-1].x0)[0].movedim(0, -1).mul(255).round().byte().numpy()
    assert np.abs(last.astype(int) - np.asarray(images[1])).max() <= 1  # the last step goes to its estimate


def test_generators_draw_the_noise(pipeline: PrefRestorePipeline) -> None:
    def drawn(*seeds: int) -> list[bytes]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        chosen = generators if len(seeds) > 1 else generators[0]
        images = pipeline([picture(), picture()], num_inference_steps=2, generator=chosen).images
        return [image.tobytes() for image in images]

    apart, again, together = drawn(1, 2), drawn(1, 2), drawn(1)
    assert apart == again
    assert apart[0] == together[0] != together[1]
    assert apart[0] != apart[1]
    with pytest.raises(UserError, match="1 images but 2 generators"):
        pipeline(picture(), generator=[torch.Generator(), torch.Generator()])


def test_images_of_every_mode_mean_what_they_show() -> None:
    grey = np.full((8, 8), 0x8080, np.uint16)
    assert to_tensor_of(Image.fromarray(grey), 8).mean() == pytest.approx(128 / 255, abs=1e-6)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert to_tensor_of(clear, 8).min() == 1  # transparency is laid over white
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    middle = to_tensor_of(wide, 10)
    assert middle[0, :, 5, 5].tolist() == pytest.approx([0, 0, 1])
    assert middle[0, 2].min() > 0.5  # the middle square, not the squeezed whole
    with pytest.raises(UserError, match="mode F cannot be used"):
        to_tensor_of(Image.new("F", (8, 8)), 8)


def test_wrong_calls_are_clear_errors(pipeline: PrefRestorePipeline) -> None:
    with pytest.raises(UserError, match="is too long by"):
        pipeline(picture(), "a face with a beard " * 600)
    with pytest.raises(UserError, match="0 sampling steps"):
        pipeline(picture(), num_inference_steps=0)
    with pytest.raises(UserError, match="found a ndarray"):
        pipeline([np.zeros((8, 8, 3))])
