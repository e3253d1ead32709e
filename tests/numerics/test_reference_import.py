"""A checkpoint of the published layout, imported, computes what the description says; every trap is met."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from numerics import published
from numerics.published import Published
from prefrestore import configfile
from prefrestore.commands import model as commands
from prefrestore.config import PretrainConfig, TokenizerConfig
from prefrestore.diffusion.sampler import Sampler
from prefrestore.errors import UserError
from prefrestore.models.codec import published_codec
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.reference_import import Layout, import_stage_a
from prefrestore.models.reference_layout import empty
from prefrestore.models.reference_tokenizer import convert_tokenizer, load_tokenizer, published_tokenizer

IMAGE = 32


@dataclass(frozen=True)
class Stage:
    """A small checkpoint: its weights by the published names, the text tokenizer, and the sizes ours needs."""

    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    text_size: int
    layout: Layout

    def write(self, folder: Path, weights: dict[str, Tensor] | None = None, **settings: object) -> Path:
        config = published.settings(self.text_size) | settings
        return published.write_checkpoint(folder, weights or self.weights, self.tokenizer, config)


def sizes(repository: Path, text_size: int) -> tuple[PretrainConfig, TokenizerConfig]:
    """The smoke preset with the sizes of the small checkpoint."""
    smoke = configfile.load(repository / "presets" / "smoke.yaml")
    integrator = {
        "hidden_size": published.D,
        "layers": published.LAYERS,
        "heads": published.HEADS,
        "kv_heads": published.KV,
        "head_dim": published.HEAD,
        "ffn_size": published.FFN,
        "text_vocabulary": text_size,
        "text_first": False,
    }
    generator = {
        "patch_size": 1,
        "layers": published.DIT_LAYERS,
        "heads": published.DIT_HEADS,
        "head_dim": published.DIT // published.DIT_HEADS,
        "cross_heads": published.CROSS,
        "cross_head_dim": published.DIT // published.CROSS,
        "caption_size": published.CAPTION,
        "text_modulation": False,
    }
    tokenizer = {
        "image_size": published.SIDE,
        "patch_size": published.PATCH,
        "hidden_size": published.VIT,
        "layers": published.VIT_LAYERS,
        "heads": published.VIT_HEADS,
        "ffn_size": published.VIT_FFN,
        "codebook_size": published.CODES,
        "code_dim": published.CODE_DIM,
    }
    pretrain = smoke.pretrain.model_copy(
        update={
            "integrator": smoke.pretrain.integrator.model_copy(update=integrator),
            "generator": smoke.pretrain.generator.model_copy(update=generator),
        }
    )
    return pretrain, smoke.train_codec.tokenizer.model_copy(update=tokenizer)


@pytest.fixture(scope="module")
def stage(repository: Path) -> Stage:
    tokenizer, text_size = published.text_tokenizer(published.CODES)
    pretrain, image_tokenizer = sizes(repository, text_size)
    torch.manual_seed(6)
    clean = published.codec()
    layout = Layout(pretrain, clean, published_tokenizer(image_tokenizer), IMAGE)
    return Stage(published.random_checkpoint(text_size), tokenizer, text_size, layout)


@pytest.fixture(scope="module")
def imported(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> PrefRestorePipeline:
    return import_stage_a(str(stage.write(tmp_path_factory.mktemp("stage") / "a")), stage.layout)


@pytest.fixture(scope="module")
def lq() -> Tensor:
    """Two images [2, 3, IMAGE, IMAGE] in [0, 1] of whole 8-bit levels."""
    coarse = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(9))
    return (functional.interpolate(coarse, (IMAGE, IMAGE), mode="bicubic").clamp(0, 1) * 255).round() / 255


@pytest.fixture(scope="module")
def straight(stage: Stage) -> Published:
    return Published(stage.weights, stage.text_size, stage.tokenizer)


def pixels_of(lq: Tensor) -> Tensor:
    """What the published image processor gives the tower: bicubic in 8 bits, then [-1, 1]."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray((lq * 255).round().byte().movedim(0, -1).numpy())
    resized = picture.resize((published.SIDE, published.SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).movedim(-1, 0).float() / 127.5 - 1


@torch.no_grad()
def test_imported_model_computes_what_the_published_one_does(
    imported: PrefRestorePipeline, straight: Published, lq: Tensor
) -> None:
    """Codes, prompt, generated ids, queries, condition, velocity and picture, each against its own straight version."""
    decoded = imported.integrate(lq, ["", ""])
    condition = imported.encode_condition(lq, ["", ""])
    noise = imported.initial_noise([1, 2])
    sampler = Sampler(4, "euler")
    latents = sampler(lambda x_t, sigma: imported.velocity(x_t, sigma, condition), noise)
    restored = imported.decode(latents)
    for index in range(2):
        codes = straight.code_ids(pixels_of(lq[index]))
        assert (imported.image_tokenizer.ids(lq)[index] == codes).float().mean() > 0.8  # the last bit of a pixel
        codes = imported.image_tokenizer.ids(lq)[index]
        prompt = straight.prompt(codes)
        assert imported.prompts(codes[None], [""]).ids[0].tolist() == prompt
        said, queries = straight.queries(prompt)
        assert decoded.ids[index].tolist() == said
        assert torch.allclose(decoded.queries[index], queries, atol=1e-4)
        tokens = straight.condition(queries, 2 * lq[index] - 1)
        assert tokens.shape == (17 + 16, published.CAPTION)
        assert torch.allclose(condition.tokens[index], tokens, atol=1e-4)
        for sigma in (0.25, 1.0):
            ours = imported.velocity(noise[index : index + 1], torch.tensor([sigma]), condition.select([index]))[0]
            assert torch.allclose(ours, straight.velocity(noise[index], sigma, tokens), atol=1e-4)
        x = noise[index]
        for step in range(4):
            x = x - straight.velocity(x, 1 - step / 4, tokens) / 4
        assert torch.allclose(latents[index], x, atol=1e-3)
        picture = (straight.codec.decode(x[None] / 0.41407).sample[0] / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(restored[index], picture, atol=1e-3)


@torch.no_grad()
def test_tower_reads_one_block_before_the_last(imported: PrefRestorePipeline, straight: Published) -> None:
    """Pixels that need no resizing give equal codes, 27 of 30 pixels a side being seen (4 x 4 patches of 7)."""
    pixels = (torch.rand(6, 3, published.SIDE, published.SIDE) * 255).round() / 255
    ours = imported.image_tokenizer.ids(pixels)
    assert ours.shape == (6, 16)
    assert torch.equal(ours, torch.stack([straight.code_ids(2 * one - 1) for one in pixels]))
    assert ours.unique().numel() > 5


def test_prompt_has_29_ids_and_the_sequence_1486(stage: Stage) -> None:
    """With 729 codes in the placeholder's stead (reference-method 7.3, 1)."""
    prompt = Published(stage.weights, stage.text_size, stage.tokenizer).prompt(torch.zeros(729, dtype=torch.long))
    assert len(prompt) - 729 + 1 == 29
    assert len(prompt) == 757
    assert len(prompt) + 729 == 1486


@torch.no_grad()
def test_additions_change_nothing_and_can_be_opened(imported: PrefRestorePipeline, lq: Tensor) -> None:
    condition = imported.encode_condition(lq, ["", ""])
    blind = replace(condition, spatial=torch.zeros_like(condition.spatial))
    x_t, sigma = imported.initial_noise([1, 2]), torch.tensor([0.5, 0.9])
    assert torch.equal(imported.velocity(x_t, sigma, condition), imported.velocity(x_t, sigma, blind))
    assert imported.generator.transformer.gain[0].weight.abs().sum() > 0
    assert imported.generator.config.spatial_path


def test_text_tokenizer_keeps_text_alone(imported: PrefRestorePipeline, stage: Stage) -> None:
    assert len(imported.text_tokenizer) == stage.text_size
    ids = imported.prompts(torch.zeros(1, 16, dtype=torch.long), ["<|im_end|><I3> a face"]).ids[0]
    plain = imported.prompts(torch.zeros(1, 16, dtype=torch.long), ["a face"]).ids[0]
    codes = stage.text_size + 5
    assert (ids >= codes).sum() == (plain >= codes).sum() == 16
    assert (ids == imported.text_tokenizer.eos_token_id).sum() == (plain == imported.text_tokenizer.eos_token_id).sum()


def test_saved_import_is_equal(imported: PrefRestorePipeline, lq: Tensor, tmp_path: Path) -> None:
    imported.save_pretrained(tmp_path / "base")
    again = PrefRestorePipeline.from_pretrained(tmp_path / "base")
    assert torch.equal(again.restore(lq[:1], [""], [3], 2), imported.restore(lq[:1], [""], [3], 2))
    assert again.integrator.lm_head.weight.data_ptr() == again.integrator.model.embed_tokens.weight.data_ptr()


def _restored(stage: Stage, folder: Path, lq: Tensor) -> Tensor:
    return import_stage_a(str(folder), stage.layout).restore(lq[:1], [""], [3], 2)


def test_traps_of_the_layout(stage: Stage, imported: PrefRestorePipeline, lq: Tensor, tmp_path: Path) -> None:
    """What checkpoints may carry besides changes nothing."""
    embedding = stage.weights["model.embed_tokens.weight"]
    extra_row = torch.cat([embedding, torch.randn(1, published.D)])
    tower = "model.vision_tower.vision_tower.encoder."
    variants = {
        "extra row and stored head": {"model.embed_tokens.weight": extra_row, "lm_head.weight": extra_row.clone()},
        "head alone longer": {"lm_head.weight": extra_row},
        "clean codec inside": {
            f"fixed_vae.{name}": value.clone() for name, value in stage.layout.codec.state_dict().items()
        },
        "shared norm stored twice": {
            "model.vae_connector.3.weight": stage.weights["model.diffusion_connector.3.weight"].clone()
        },
    }
    expected = imported.restore(lq[:1], [""], [3], 2)
    for name, changes in variants.items():
        if name.startswith("shared"):
            continue
        folder = stage.write(tmp_path / name, stage.weights | changes)
        assert torch.equal(_restored(stage, folder, lq), expected), name
    shared = stage.weights | variants["shared norm stored twice"]
    absent = {name: value for name, value in shared.items() if name != "model.vae_connector.3.weight"}
    twice, once = (stage.write(tmp_path / name, weights) for name, weights in (("twice", shared), ("once", absent)))
    assert torch.equal(_restored(stage, twice, lq), _restored(stage, once, lq))
    assert import_stage_a(str(once), stage.layout).connectors.config.shared_norm
    nested = {name.replace(tower, f"{tower}vision_model."): value for name, value in stage.weights.items()}
    assert torch.equal(_restored(stage, stage.write(tmp_path / "nested", nested), lq), expected)


def test_encoders_are_not_mixed_up(stage: Stage, imported: PrefRestorePipeline) -> None:
    """The fine-tuned encoder sees LQ; latents of HQ come from the clean one."""
    trained = stage.weights["model.sana_vae.encoder.conv_in.weight"]
    assert torch.equal(imported.lq_encoder.encoder.conv_in.weight, trained)
    assert torch.equal(imported.codec.encoder.conv_in.weight, stage.layout.codec.encoder.conv_in.weight)
    assert not torch.equal(trained, stage.layout.codec.encoder.conv_in.weight)
    decoder = stage.weights["model.sana_vae.decoder.conv_in.weight"]
    assert torch.equal(imported.codec.decoder.conv_in.weight, decoder)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        ("model.sana.proj_out.bias", None, r"model\.sana\.proj_out\.bias is missing"),
        ("model.diffusion_connector.0.weight", None, r"model\.diffusion_connector\.0\.weight is missing"),
        ("model.vision_tower.vision_tower.bottleneck.in_linear.bias", None, r"bottleneck\.in_linear\.bias is missing"),
        ("model.sana.caption_norm.weight", (9,), r"caption_norm\.weight has the shape \(9,\), .* expects \(24,\)"),
        ("model.embed_tokens.weight", (40, 32), "model.embed_tokens.weight has 40 rows"),
        ("model.mm_projector.weight", (3,), r"model\.mm_projector\.weight is unexpected"),
        ("model.sana.transformer_blocks.7.scale_shift_table", (6, 24), r"blocks\.7\.scale_shift_table is unexpected"),
        ("fixed_vae.encoder.conv_in.weight", (16, 3, 3, 3), r"fixed_vae\.encoder\..* is missing"),
    ],
)
def test_wrong_keys_are_named(
    stage: Stage, name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    weights = {key: value for key, value in stage.weights.items() if key != name}
    if shape:
        weights[name] = torch.randn(shape)
    with pytest.raises(UserError, match=message):
        import_stage_a(str(stage.write(tmp_path / "a", weights)), stage.layout)


def test_a_head_of_its_own_is_kept_where_the_checkpoint_says_so(stage: Stage, tmp_path: Path) -> None:
    weights = stage.weights | {"lm_head.weight": torch.randn_like(stage.weights["model.embed_tokens.weight"])}
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        import_stage_a(str(stage.write(tmp_path / "tied", weights)), stage.layout)
    untied = import_stage_a(str(stage.write(tmp_path / "untied", weights, tie_word_embeddings=False)), stage.layout)
    assert torch.equal(untied.integrator.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize(("part", "option"), [("integrator", "text_first"), ("generator", "text_modulation")])
def test_options_that_published_weights_do_not_know_are_refused(
    stage: Stage, tmp_path: Path, part: str, option: str
) -> None:
    config = stage.layout.config
    ours = config.model_copy(update={part: getattr(config, part).model_copy(update={option: True})})
    with pytest.raises(UserError, match=f"pretrain.{part}.{option}: .*set false"):
        import_stage_a(str(stage.write(tmp_path / "a")), replace(stage.layout, config=ours))


def test_wrong_folders_are_refused(stage: Stage, tmp_path: Path) -> None:
    def imported_from(folder: Path) -> str:
        with pytest.raises(UserError) as raised:
            import_stage_a(str(folder), stage.layout)
        return str(raised.value)

    (tmp_path / "empty").mkdir()
    assert "is no Stage-A folder" in imported_from(tmp_path / "empty")
    assert "is no folder, and the hub gives none" in imported_from(tmp_path / "nowhere")
    assert "hidden_size is 64" in imported_from(stage.write(tmp_path / "other", hidden_size=64))
    assert "num_image_tokens is 65536" in imported_from(stage.write(tmp_path / "codes", num_image_tokens=65536))
    folder = stage.write(tmp_path / "cut")
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "is damaged or cut short" in imported_from(folder)
    shard.unlink()
    assert "model-00002-of-00002.safetensors: is missing" in imported_from(folder)
    save_file({"x": torch.zeros(1)}, shard)
    assert "though the index names it" in imported_from(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "is pickled" in imported_from(folder)
    no_text = stage.write(tmp_path / "text")
    (no_text / "tokenizer.json").unlink()
    assert "tokenizer.json: is missing" in imported_from(no_text)
    settings = json.loads((stage.write(tmp_path / "rope") / "config.json").read_text(encoding="utf-8"))
    del settings["rope_theta"]
    (tmp_path / "rope" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "rope_theta is missing" in imported_from(tmp_path / "rope")


def test_without_a_clean_codec_the_import_says_so(stage: Stage, tmp_path: Path) -> None:
    sized = empty(lambda: published_codec(published.WIDTHS, published.DEPTHS, published.CHANNELS))
    with pytest.raises(UserError, match="holds no clean codec"):
        import_stage_a(str(stage.write(tmp_path / "a")), replace(stage.layout, codec=sized))


def test_published_ta_tok_becomes_our_tokenizer(stage: Stage, repository: Path, tmp_path: Path) -> None:
    tower = "model.vision_tower.vision_tower."
    weights = {name.removeprefix(tower): value for name, value in stage.weights.items() if name.startswith(tower)}
    weights["teacher.vision_model.embeddings.weight"] = torch.zeros(3)
    _, config = sizes(repository, stage.text_size)
    arguments = {"input_size": published.SIDE, "bottleneck": {"name": "bottleneck", "args": {"bottleneck_dim": 10}}}
    torch.save({"model": {"args": arguments, "sd": weights}}, tmp_path / "ta_tok.pth")
    converted = convert_tokenizer(tmp_path / "ta_tok.pth", config)
    converted.save_pretrained(tmp_path / "out")
    names = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors").keys()
    assert not [name for name in names if "teacher" in name or "layers.2." in name or "decoder" in name]
    pixels = torch.rand(2, 3, published.SIDE, published.SIDE)
    straight = Published(stage.weights, stage.text_size, stage.tokenizer)
    rounded = (pixels * 255).round() / 127.5 - 1
    assert torch.equal(converted.ids(pixels), torch.stack([straight.code_ids(one) for one in rounded]))
    torch.save({"model": {"args": arguments | {"pool_scale": 3}, "sd": weights}}, tmp_path / "pooled.pth")
    with pytest.raises(UserError, match="pool_scale is 3"):
        convert_tokenizer(tmp_path / "pooled.pth", config)


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_file_that_runs_code_is_refused(repository: Path, tmp_path: Path) -> None:
    _, config = sizes(repository, 10)
    torch.save({"model": {"args": {}, "sd": {"x": _Trap(tmp_path / "ran")}}}, tmp_path / "ta_tok.pth")
    with pytest.raises(UserError, match="is no TA-Tok file"):
        convert_tokenizer(tmp_path / "ta_tok.pth", config)
    assert not (tmp_path / "ran").exists()
    for file in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(UserError, match="ta_tok.pth"):
            convert_tokenizer(file, config)


def test_convert_makes_folders_that_load(
    stage: Stage, repository: Path, lq: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms of ``prefrestore model convert``, and their refusals."""
    smoke = configfile.load(repository / "presets" / "smoke.yaml")
    pretrain, tokenizer = sizes(repository, stage.text_size)
    codec = {"tokenizer": tokenizer, "widths": published.WIDTHS, "layers": published.DEPTHS, "latent_channels": 8}
    small = smoke.model_copy(
        update={
            "ingest": smoke.ingest.model_copy(update={"image_size": IMAGE}),
            "train_codec": smoke.train_codec.model_copy(update=codec),
            "pretrain": pretrain,
        }
    )
    (tmp_path / "presets").mkdir()
    text = yaml.safe_dump(small.model_dump(mode="json", by_alias=True))
    (tmp_path / "presets" / "small.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    clean = {f"fixed_vae.{name}": value.clone() for name, value in stage.layout.codec.state_dict().items()}
    stage.write(tmp_path / "stage_a", stage.weights | clean)
    tower = "model.vision_tower.vision_tower."
    weights = {name.removeprefix(tower): value for name, value in stage.weights.items() if name.startswith(tower)}
    torch.save({"model": {"args": {}, "sd": weights}}, "ta_tok.pth")
    for arguments in (["tokenizer", "ta_tok.pth", "ta_tok"], ["stage-a", "stage_a", "base"]):
        invoke(["convert", *arguments, "--preset", "small"])
    base = PrefRestorePipeline.from_pretrained("base")
    assert torch.equal(load_tokenizer("ta_tok").ids(lq), base.image_tokenizer.ids(lq))
    expected = import_stage_a("stage_a", stage.layout).restore(lq[:1], [""], [3], 2)
    assert torch.equal(base.restore(lq[:1], [""], [3], 2), expected)
    with pytest.raises(UserError, match="there is no preset huge"):
        invoke(["convert", "stage-a", "stage_a", "other", "--preset", "huge"])
    (tmp_path / "stage_a" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        invoke(["convert", "stage-a", "stage_a", "other", "--preset", "small"])
    assert not (tmp_path / "other").exists()


def invoke(arguments: list[str]) -> None:
    assert CliRunner().invoke(commands.command, arguments, catch_exceptions=False).exit_code == 0
