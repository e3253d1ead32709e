"""The restorer's networks at very small sizes, as real diffusers and transformers classes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prefrestore.config import Config
from prefrestore.configfile import load
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.models.codec import build_codec, can_start_linear, decode, encode, load_codec, start_linear
from prefrestore.models.connectors import Connectors
from prefrestore.models.generator import Generator
from prefrestore.models.integrator import generate, positions, teacher_forced, vocabulary_of
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import RESTORE, RESTORE_CAPTION, Vocabulary, render_prompts, train_text_tokenizer
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.sft.pretrain import build_pipeline
from prefrestore.sft.tokenizer import codebook_use, fit_codebook

SIDE = 32


def faces(count: int) -> np.ndarray:
    """Smooth random pictures [count, SIDE, SIDE, 3] uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in coarse])


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one - other).detach().square().mean().log10())


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    return load(repository / "presets" / "smoke.yaml")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(faces(12)).movedim(-1, 1).float() / 255


@pytest.fixture(scope="module")
def pipeline(config: Config, images: torch.Tensor) -> PrefRestorePipeline:
    torch.manual_seed(0)
    pictures = faces(12)
    codec = build_codec(config.train_codec)
    start_linear(codec, images)
    tokenizer = build_tokenizer(config.train_codec.tokenizer)
    pairs = PairSet(
        ids=tuple("abcdefghijkl"),
        captions=("a person with glasses", "a person with a beard and a very long description") * 6,
        hq=pictures,
        lq=pictures[:, None],
        records=(),
        landmarks=np.full((12, 68, 2), np.nan, np.float32),
    )
    return build_pipeline(config.pretrain, codec.eval(), tokenizer.eval(), pairs)


def test_codec_starts_as_a_linear_code(config: Config, images: torch.Tensor) -> None:
    """Before any training the codec is as good as PCA of the patches, computed here by another route."""
    assert can_start_linear(config.train_codec)
    torch.manual_seed(1)
    codec = build_codec(config.train_codec)
    untrained = psnr(decode(codec, encode(codec, images)), images)
    start_linear(codec, images)
    latents = encode(codec, images)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).flatten(3).flatten(0, 2).double()
    centred = patches - patches.mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    kept = components[: config.train_codec.latent_channels]
    principal = psnr(centred @ kept.T @ kept, centred)
    started = psnr(decode(codec, latents), images)
    assert started == pytest.approx(principal, abs=1)
    assert started > untrained + 10
    assert latents.square().mean().item() == pytest.approx(1, abs=0.15)


def test_codec_starts_equal_wherever_memory_lies(config: Config) -> None:
    """To the bit: two runs of the graph must give equal models, and some solvers look at addresses."""
    pictures, sizes, starts = torch.from_numpy(faces(48)).movedim(3, 1) / 255, random.Random(0), set()
    for _ in range(20):
        other = [np.ones(sizes.randrange(1, 60_000), np.uint8) for _ in range(200)][::2]
        torch.manual_seed(1)
        codec = build_codec(config.train_codec)
        start_linear(codec, pictures)
        starts.add(codec.encoder.conv_out.weight.detach().numpy().tobytes())
        del other
    assert len(starts) == 1


def test_missing_pretrained_codec_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="no AutoencoderDC can be loaded"):
        load_codec("nowhere/at-all")


def test_ids_follow_the_published_layout() -> None:
    vocabulary = Vocabulary(text_size=151669, num_codes=65536)
    assert (vocabulary.image_start, vocabulary.image_end, vocabulary.scale) == (151669, 151670, 151671)
    assert (vocabulary.first_code, vocabulary.size) == (151674, 217210)


def test_text_tokenizer_gives_text_back() -> None:
    tokenizer = train_text_tokenizer(["a person with glasses", "ein Gesicht"], 300)
    assert len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer.encode(RESTORE + " äöü")) == RESTORE + " äöü"


def test_prompts_are_padded_on_the_left_and_end_with_the_scale_token(pipeline: PrefRestorePipeline) -> None:
    lq_ids = torch.zeros(2, 9, dtype=torch.long)
    prompt = pipeline.prompts(lq_ids, ["", "a person with glasses and much else to say"])
    vocabulary = vocabulary_of(pipeline.integrator)
    assert prompt.ids[:, -2:].tolist() == [[vocabulary.image_start, vocabulary.scale]] * 2
    assert prompt.mask[0, 0] == 0
    assert prompt.mask[1].all()
    assert (prompt.ids[0] == vocabulary.first_code).sum() == 9
    assert positions(prompt.mask)[0, -1] == prompt.mask[0].sum() - 1


@pytest.mark.parametrize("first", [True, False])
def test_a_prompt_knows_where_its_text_stands(pipeline: PrefRestorePipeline, first: bool) -> None:
    tokenizer, vocabulary = pipeline.text_tokenizer, replace(vocabulary_of(pipeline.integrator), text_first=first)
    prompt = render_prompts(tokenizer, vocabulary, torch.zeros(2, 9, dtype=torch.long), ["", "with glasses"])
    assert not prompt.text[0].any()
    assert tokenizer.decode(prompt.ids[1][prompt.text[1].bool()]).strip() == f"{RESTORE_CAPTION}with glasses"


def test_the_text_state_is_the_mean_over_the_text(pipeline: PrefRestorePipeline, images: torch.Tensor) -> None:
    texts = ["", "glasses", "a beard and more"]
    prompt = pipeline.prompts(pipeline.image_tokenizer.ids(images[:3]), texts)
    said = pipeline.integrate(images[:3], texts)
    states = pipeline.integrator.model(
        input_ids=prompt.ids, attention_mask=prompt.mask, position_ids=positions(prompt.mask)
    ).last_hidden_state
    assert torch.equal(said.text[0], torch.zeros_like(said.text[0]))
    for row in (1, 2):
        kept, words = prompt.text[row].bool(), pipeline.integrator.model.embed_tokens(prompt.ids[row])
        both = torch.cat([states[row][kept].mean(0), words[kept].mean(0)])
        assert torch.allclose(said.text[row], both, atol=1e-5)
    assert torch.allclose(said.text, teacher_forced(pipeline.integrator, prompt, said.ids).text, atol=1e-5)


def test_text_states_are_standardised_by_those_that_were_measured() -> None:
    torch.manual_seed(3)
    connectors = Connectors(6, 5, 8, 3, 2, text=True)
    states = torch.cat([torch.zeros(3, 12), 7 + 0.01 * torch.randn(50, 12)])
    connectors.measure_text(states)
    standard = connectors.text(states)
    assert torch.equal(standard[:3], torch.zeros(3, 12))
    assert torch.allclose(standard[3:].mean(0), torch.zeros(12), atol=1e-3)
    assert torch.allclose(standard[3:].std(0), torch.ones(12), atol=1e-3)
    assert Connectors(6, 5, 8, 3, 2).text(states).shape == (53, 0)


@pytest.mark.parametrize(("grid", "size"), [(3, 12), (3, 8), (5, 4)])
def test_queries_speak_of_their_own_place(grid: int, size: int) -> None:
    torch.manual_seed(5)
    connectors = Connectors(6, 5, 8, grid, 2, query_path=4, latent_size=size)
    queries = torch.randn(2, grid * grid + 1, 6)
    assert torch.equal(connectors.placed(queries), torch.zeros(2, 4, size, size))  # nothing at the start
    assert Connectors(6, 5, 8, grid, 2).placed(queries) == 0

    torch.nn.init.normal_(connectors.placement.weight)
    before = connectors.placed(queries)
    queries[:, 0] += 1  # <S0> has no place
    assert torch.equal(connectors.placed(queries), before)
    queries[1, 1 + grid * grid - 1] += 1  # the last query: the lower right corner
    changed = (connectors.placed(queries) - before).abs().sum(1)
    assert not changed[0].any()
    assert changed[1, -1, -1] > 0
    assert not changed[1, : size // 2, :].any()
    assert not changed[1, :, : size // 2].any()


def test_text_modulation_starts_at_zero() -> None:
    torch.manual_seed(4)
    generator = Generator(8, 8, 2, 2, 4, 16, 2, 32, 64, text_size=6)
    x_t, tokens, sigma = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 64), torch.tensor([0.3, 0.9])
    assert torch.equal(generator(x_t, sigma, tokens, x_t, torch.randn(2, 6)), generator(x_t, sigma, tokens, x_t))
    torch.manual_seed(4)
    plain = Generator(8, 8, 2, 2, 4, 16, 2, 32, 64)
    assert torch.equal(plain(x_t, sigma, tokens, x_t), generator(x_t, sigma, tokens, x_t))


def test_text_may_stand_before_the_picture_or_after_it(pipeline: PrefRestorePipeline) -> None:
    """Before it, a code's distance to the end of the prompt is that of a prompt without text."""
    codes = torch.arange(9)[None]
    tokenizer, own = pipeline.text_tokenizer, vocabulary_of(pipeline.integrator)
    for first in (True, False):
        vocabulary = replace(own, text_first=first)
        bare, told = (render_prompts(tokenizer, vocabulary, codes, [text]).ids[0] for text in ("", "with glasses"))
        from_end = [len(ids) - int((ids == vocabulary.first_code).nonzero()[0, 0]) for ids in (bare, told)]
        assert (from_end[0] == from_end[1]) == first
        assert sorted(told.tolist())[-9:] == (codes[0] + vocabulary.first_code).tolist()
        assert "with glasses" in tokenizer.decode(told[told < own.text_size])


def test_decoding_harvests_the_states_of_a_full_pass(pipeline: PrefRestorePipeline, images: torch.Tensor) -> None:
    prompt = pipeline.prompts(pipeline.image_tokenizer.ids(images[:3]), ["", "glasses", "a beard and more"])
    decoded = generate(pipeline.integrator, prompt, pipeline.image_tokenizer.num_tokens)
    forced = teacher_forced(pipeline.integrator, prompt, decoded.ids)
    assert decoded.queries.shape == forced.queries.shape
    assert torch.allclose(decoded.queries, forced.queries, atol=1e-5)
    head = pipeline.integrator.lm_head.weight[vocabulary_of(pipeline.integrator).first_code :]
    assert torch.equal((forced.queries[:, :-1] @ head.T).argmax(-1), decoded.ids)


def test_padding_does_not_change_what_the_integrator_says(pipeline: PrefRestorePipeline, images: torch.Tensor) -> None:
    alone = pipeline.integrate(images[:1], [""])
    beside = pipeline.integrate(images[:2], ["", "a long text that makes the other prompt longer"])
    assert torch.equal(alone.ids, beside.ids[:1])
    assert torch.allclose(alone.queries, beside.queries[:1], atol=1e-5)


def test_text_reaches_the_queries(pipeline: PrefRestorePipeline, images: torch.Tensor) -> None:
    one, other = (pipeline.integrate(images[:1], [text]).queries for text in ("glasses", "beard"))
    assert not torch.allclose(one, other, atol=1e-4)


def test_spatial_path_starts_at_zero() -> None:
    """Weights published without our additions must load bit-true: before they are opened they change nothing."""
    torch.manual_seed(2)
    generator = Generator(8, 8, 2, 2, 4, 16, 2, 32, 64)
    x_t, tokens, sigma = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 64), torch.tensor([0.3, 0.9])
    one = generator(x_t, sigma, tokens, torch.randn(2, 8, 8, 8))
    other = generator(x_t, sigma, tokens, torch.zeros(2, 8, 8, 8))
    assert torch.equal(one, other)
    plain = Generator(8, 8, 2, 2, 4, 16, 2, 32, 64, spatial_path=False)
    weights = {name: value for name, value in generator.transformer.state_dict().items() if "gain." not in name}
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][:, :8]
    plain.transformer.load_state_dict(weights)
    assert torch.allclose(one, plain(x_t, sigma, tokens, x_t), atol=1e-6)


def test_condition_tokens_are_a_set_to_the_generator(pipeline: PrefRestorePipeline, images: torch.Tensor) -> None:
    condition = pipeline.encode_condition(images[:2], ["", ""])
    x_t, sigma = pipeline.initial_noise([0, 1]), torch.full((2,), 0.5)
    shuffled = condition.tokens[:, torch.randperm(condition.tokens.shape[1])]
    with torch.no_grad():
        one = pipeline.generator(x_t, sigma, condition.tokens, condition.spatial)
        other = pipeline.generator(x_t, sigma, shuffled, condition.spatial)
    assert torch.allclose(one, other, atol=1e-5)


def test_connector_output_has_the_published_size(pipeline: PrefRestorePipeline) -> None:
    states = torch.randn(2, 10, pipeline.integrator.config.hidden_size)
    rms = pipeline.connectors.diffusion_connector(states).square().mean(-1).sqrt()
    assert torch.allclose(rms, torch.full_like(rms, 5.5**0.5), rtol=1e-3)


def test_noise_depends_on_its_own_seed_alone(pipeline: PrefRestorePipeline) -> None:
    both = pipeline.initial_noise([7, 8])
    assert torch.equal(pipeline.initial_noise([8])[0], both[1])


def test_restoration_repeats_to_the_bit_and_ignores_its_neighbours(pipeline: PrefRestorePipeline) -> None:
    one, other = (Image.fromarray(face) for face in faces(2))
    alone = pipeline(one, seed=3).images[0]
    beside = pipeline([other, one], seed=3).images[1]
    assert alone.tobytes() == beside.tobytes()
    assert alone.size == (SIDE, SIDE)
    assert pipeline(one, seed=4).images[0].tobytes() != alone.tobytes()


def test_pictures_of_any_mode_and_size_are_taken(pipeline: PrefRestorePipeline) -> None:
    for mode in ("L", "RGBA", "P", "1"):
        assert pipeline(Image.new(mode, (50, 20))).images[0].mode == "RGB"


def test_numbers_of_pictures_and_texts_must_agree(pipeline: PrefRestorePipeline) -> None:
    with pytest.raises(UserError, match="2 images but 1 texts"):
        pipeline([Image.new("RGB", (8, 8))] * 2, text=["one"])
    with pytest.raises(UserError, match="no image to restore"):
        pipeline([])


def test_saved_pipeline_restores_equally(pipeline: PrefRestorePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = PrefRestorePipeline.from_pretrained(tmp_path)
    picture = Image.fromarray(faces(1)[0])
    assert again(picture, "glasses").images[0].tobytes() == pipeline(picture, "glasses").images[0].tobytes()
    assert again.sampler_steps == pipeline.sampler_steps
    assert not list(tmp_path.rglob("*.bin"))


def test_codebook_of_centres_is_used(config: Config) -> None:
    tokenizer = build_tokenizer(config.train_codec.tokenizer).eval()
    pictures = faces(40)
    fit_codebook(tokenizer, pictures, seed=0)
    use = codebook_use(tokenizer, pictures)
    assert use.used > 0.8
    assert use.perplexity > 0.4 * tokenizer.config.codebook_size
