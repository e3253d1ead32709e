"""Alignment on a real, tiny, untrained restorer: roles, invariances, resumption, the stage and its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from prefrestore import artifacts, configfile
from prefrestore.config import AlignConfig, LoraConfig
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.diffusion.flow import flow_matching_loss, interpolate, uniform_sigma
from prefrestore.errors import UserError
from prefrestore.models.adapters import (
    KEY_PREFIX,
    Role,
    add_roles,
    load_policy,
    policy_parameters,
    role_tensors,
    save_policy,
    set_role,
    using_role,
)
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.rewards.composite import CompositeReward, Part
from prefrestore.rewards.faces import FaceReader
from prefrestore.rl.batches import judge
from prefrestore.rl.guard import Guard, Look, Watch
from prefrestore.rl.live import LiveView
from prefrestore.rl.pool import ConditionCache, draw_pools, epoch_rows
from prefrestore.rl.rollout import Restorer, collect, solver
from prefrestore.rl.trainer import Aligned, Surroundings, Trainer, align
from prefrestore.rl.types import Rollout
from prefrestore.runtime.checkpoint import Checkpoint, Checkpoints
from prefrestore.runtime.tracking import ADDRESS, tracker
from prefrestore.sft.pretrain import build_pipeline

SIZE = 32
BASE_STEPS = 250
NAN = float("nan")


class Brightness:
    """A reward whose effect is plain to see."""

    name = "brightness"

    def score(self, restored: Tensor, references: object) -> Tensor:  # noqa: ARG002 (the interface)
        return restored.mean((1, 2, 3))


def align_config(repository: Path, **changes: object) -> AlignConfig:
    plain = configfile.read_yaml(repository / "presets" / "smoke.yaml")["align"]
    guard = {**plain["guard"], "faces": 2, "certainty": 0.0, "margins": {}}
    return configfile.parse(AlignConfig, {**plain, "pool": 6, "guard": guard, **changes}, "test")


@pytest.fixture
def config(repository: Path) -> AlignConfig:
    return align_config(repository)


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    """Six faceless pictures, so that dlib has nothing to do: HQ of any brightness, LQ that does not tell which."""
    random = np.random.default_rng(0)
    hq = random.integers(30, 220, (6, 1, 1, 1)) + random.normal(0, 10, (6, SIZE, SIZE, 3))
    lq = np.full((6, 2, SIZE, SIZE, 3), 128, np.uint8)
    names = tuple(f"face-{row}" for row in range(6))
    landmarks = np.full((6, 68, 2), np.nan, np.float32)
    return PairSet(names, ("a face",) * 6, hq.clip(0, 255).astype(np.uint8), lq, ((),) * 6, landmarks)


@pytest.fixture(scope="module")
def base(repository: Path, pairs: PairSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restorer of the smoke preset whose generator has learned in a few seconds that any brightness will do."""
    preset = configfile.load(repository / "presets" / "smoke.yaml")
    torch.manual_seed(0)
    images = to_tensor(pairs.hq)
    codec = build_codec(preset.train_codec).eval()
    start_linear(codec, images)
    tokenizer = build_tokenizer(preset.train_codec.tokenizer).eval()
    pipeline = build_pipeline(preset.pretrain, codec, tokenizer, pairs)
    latents = pipeline.encode(images)
    condition = pipeline.encode_condition(to_tensor(pairs.lq[:, 0]), [""] * 6)
    parameters = list(pipeline.generator.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(BASE_STEPS):
        rows = torch.randint(6, (24,), generator=generator)
        noise = torch.randn(24, *pipeline.latent_shape, generator=generator)
        sigma = uniform_sigma(24, generator)
        x_t = interpolate(latents[rows], noise, sigma)
        loss = flow_matching_loss(pipeline.velocity(x_t, sigma, condition.select(rows)), latents[rows], noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    folder = tmp_path_factory.mktemp("restorer") / "base"
    pipeline.save_pretrained(folder)
    return folder


def load(base: Path) -> PrefRestorePipeline:
    pipeline = PrefRestorePipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(base: Path, config: AlignConfig) -> PrefRestorePipeline:
    """The restorer with its roles on."""
    pipeline = load(base)
    add_roles(pipeline, config.lora, config.seed)
    return pipeline


def composite(weight: float = 1.0) -> CompositeReward:
    return CompositeReward((Brightness(),), {"brightness": Part(weight, 0.5, 0.1)}, FaceReader(1))


def restorers(pipeline: PrefRestorePipeline, pairs: PairSet, config: AlignConfig) -> tuple[Restorer, Restorer]:
    pools = draw_pools(pairs, config.pool, config.guard.faces, 1.0, config.seed)
    first, second = (
        Restorer(pipeline, pool, ConditionCache(pipeline, pool), solver(config), config.batch_size) for pool in pools
    )
    return first, second


def run_align(
    base: Path, pairs: PairSet, config: AlignConfig, checkpoints: Checkpoints, weight: float = 1.0
) -> Aligned:
    pipeline = load(base)
    add_roles(pipeline, config.lora, config.seed)
    restorer, held_out = restorers(pipeline, pairs, config)
    reward = composite(weight)
    guard = Guard(held_out, reward, config.guard, config.seed)
    return align(restorer, surroundings(reward, guard, held_out, checkpoints), config)


def surroundings(reward: CompositeReward, guard: Guard, held_out: Restorer, checkpoints: Checkpoints) -> Surroundings:
    live = LiveView(checkpoints.folder, held_out.pool, tracker("align", checkpoints.folder.name))
    return Surroundings(reward, guard, live, checkpoints)


def velocity(pipeline: PrefRestorePipeline, role: Role) -> Tensor:
    """The velocity of two fixed inputs under a role."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, *pipeline.latent_shape, generator=generator)
    lq = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    condition = pipeline.encode_condition(lq, ["", ""])
    with torch.no_grad(), using_role(pipeline, role):
        return pipeline.velocity(x_t, torch.tensor([0.9, 0.3]), condition)


def shake(pipeline: PrefRestorePipeline, role: Role) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = role_tensors(pipeline, role)
    set_role(
        pipeline,
        role,
        {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()},
    )


def test_roles_start_equal_to_the_base_and_part_when_changed(pipeline: PrefRestorePipeline) -> None:
    before = velocity(pipeline, "ref")
    for role in ("policy", "old", "ema"):
        assert torch.equal(velocity(pipeline, role), before)
    shake(pipeline, "policy")
    assert not torch.allclose(velocity(pipeline, "policy"), before, atol=1e-3)
    for role in ("old", "ema", "ref"):
        assert torch.equal(velocity(pipeline, role), before)


def test_only_the_policy_is_trainable_and_switching_does_not_change_that(pipeline: PrefRestorePipeline) -> None:
    def trainable() -> set[str]:
        modules = {name: one for name, one in pipeline.components.items() if isinstance(one, torch.nn.Module)}
        return {f"{k}.{name}" for k, one in modules.items() for name, v in one.named_parameters() if v.requires_grad}

    expected = {name for name, _ in pipeline.generator.named_parameters() if ".policy." in name}
    assert len(expected) == len(policy_parameters(pipeline)) == 2 * (2 * 8 + 2)  # attention of two blocks, gain
    for role in ("old", "ref", "ema", "policy"):
        with using_role(pipeline, role):
            assert trainable() == {f"generator.{name}" for name in expected}
    assert trainable() == {f"generator.{name}" for name in expected}


def test_adapters_are_float32_on_a_bfloat16_base(base: Path, config: AlignConfig) -> None:
    pipeline = PrefRestorePipeline.from_pretrained(base, torch_dtype=torch.bfloat16)
    add_roles(pipeline, config.lora, 0)
    assert {value.dtype for value in policy_parameters(pipeline)} == {torch.float32}
    assert pipeline.generator.transformer.proj_out.weight.dtype == torch.bfloat16


def test_equal_seeds_give_equal_adapters_and_leave_the_global_stream_alone(base: Path, config: AlignConfig) -> None:
    first, second = load(base), load(base)
    torch.manual_seed(5)
    add_roles(first, config.lora, 3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    add_roles(second, config.lora, 3)
    weights = role_tensors(second, "policy")
    assert all(torch.equal(value, weights[name]) for name, value in role_tensors(first, "policy").items())
    down = torch.cat([value.flatten() for name, value in weights.items() if "lora_A" in name])
    assert float(down.std()) == pytest.approx(1 / config.lora.rank, rel=0.1)


def test_conditions_do_not_depend_on_what_is_asked_together(pipeline: PrefRestorePipeline, pairs: PairSet) -> None:
    pool, _ = draw_pools(pairs, 6, 1, 1.0, 0)
    whole, single = ConditionCache(pipeline, pool).rows(range(6)), ConditionCache(pipeline, pool).rows([4, 4])
    assert torch.equal(whole.tokens[4], single.tokens[1])
    assert torch.equal(whole.spatial[4], single.spatial[0])


def gradient(
    pipeline: PrefRestorePipeline, pairs: PairSet, config: AlignConfig, spoil: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Trainer]:
    """The policy's weights after one update that starts from equal weights; rewards may be overwritten."""
    restorer, _ = restorers(pipeline, pairs, config)
    trainer = Trainer(restorer, config, Watch({}, 0, 0.0))
    rows = epoch_rows(len(restorer.pool), config.groups, config.seed, 0)
    rollout = Rollout(tuple(collect(restorer, composite(), config, 0, rows)))
    for name, values in (spoil or {}).items():
        for place, group in enumerate(rollout.groups):
            group.parts[name].copy_(values[place])
    batch = judge(rollout, composite(), config).batch
    trainer.update(batch, 0, 0)
    found = [value.grad for value in trainer.parameters]
    return {str(place): value for place, value in enumerate(found) if value is not None}, trainer


def test_an_update_does_not_depend_on_how_it_is_cut_into_batches(
    repository: Path, base: Path, pairs: PairSet, config: AlignConfig
) -> None:
    found = []
    for batch_size in (3, 12):
        pipeline = load(base)
        add_roles(pipeline, config.lora, config.seed)
        shake(pipeline, "policy")
        changed = align_config(repository, updates=1, batch_size=batch_size, kl_weight=0.5, spread_weight=2.0)
        found.append(gradient(pipeline, pairs, changed)[0])
    size = max(float(value.abs().max()) for value in found[0].values())
    assert size > 1e-4
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4 * size)


def test_rewards_that_say_nothing_change_nothing(
    pipeline: PrefRestorePipeline, pairs: PairSet, repository: Path
) -> None:
    config = align_config(repository, updates=1)
    before = {name: value.clone() for name, value in role_tensors(pipeline, "policy").items()}
    rewards = torch.stack([torch.full((4,), NAN), torch.full((4,), 0.5), torch.tensor([NAN, NAN, NAN, 0.5])])
    _, trainer = gradient(pipeline, pairs, config, {"brightness": rewards})
    assert trainer.terms == [{"skipped_updates": 1.0}]
    assert all(torch.equal(value, before[name]) for name, value in role_tensors(pipeline, "policy").items())


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_alignment_moves_towards_what_is_rewarded_and_keeps_the_best(
    repository: Path, base: Path, pairs: PairSet, tmp_path: Path, weight: float
) -> None:
    config = align_config(repository, epochs=8, learning_rate=0.004, kl_weight=0.0, local_share=0.0)
    aligned = run_align(base, pairs, config, Checkpoints("align", config, {}, tmp_path), weight)
    scores = [row["held_out_reward_total"] for row in aligned.history]
    assert aligned.watch.best_score == max(scores) > aligned.watch.base["reward_total"] + 0.15
    assert aligned.watch.best_epoch == 1 + scores.index(max(scores))
    assert [row["step"] for row in aligned.history] == list(range(1, 9))
    assert {"loss_policy", "policy_old_deviation", "policy_ref_deviation", "old_ref_deviation", "clip_rate", "spread",
            "zero_variance_share", "nan_brightness", "reward_brightness", "reward_total", "old_decay", "ema_decay",
            "grad_norm"} <= set(aligned.history[-1])  # fmt: skip
    assert json.dumps(aligned.history, allow_nan=False)


def test_spread_is_pressed_where_it_is_asked_for(repository: Path, base: Path, pairs: PairSet, tmp_path: Path) -> None:
    found = {}
    for weight in (0.01, 100.0):
        config = align_config(repository, epochs=6, learning_rate=0.004, spread_weight=weight)
        aligned = run_align(base, pairs, config, Checkpoints("align", config, {}, tmp_path / str(weight)))
        found[weight] = [row["first_spread"] for row in aligned.history]
    assert found[100.0][-1] < 0.8 * found[100.0][0]
    assert found[100.0][-1] < 0.8 * found[0.01][-1]


class InterruptionError(Exception):
    pass


class InterruptedCheckpoints(Checkpoints):
    """Stops the run right after a checkpoint."""

    last: int

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        if checkpoint.step == self.last:
            raise InterruptionError


@pytest.fixture
def mlflow(empty_registry: bytes, tmp_path: Path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_registry)
    return f"sqlite:///{path}"


def test_resumed_in_the_middle_of_an_epoch_equals_uninterrupted(
    repository: Path, base: Path, pairs: PairSet, tmp_path: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = align_config(repository, learning_rate=0.01)
    whole = run_align(base, pairs, config, Checkpoints("align", config, {}, tmp_path / "whole"))
    monkeypatch.setenv(ADDRESS, mlflow)
    for last in (1, 3, 5):
        interrupted = InterruptedCheckpoints("align", config, {}, tmp_path / "cut")
        interrupted.last = last
        with pytest.raises(InterruptionError):
            run_align(base, pairs, config, interrupted)
    resumed = run_align(base, pairs, config, Checkpoints("align", config, {}, tmp_path / "cut"))
    assert resumed.history == whole.history
    assert resumed.watch == whole.watch
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(value, whole.tensors[name]) for name, value in resumed.tensors.items())
    client = MlflowClient(tracking_uri=mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name("prefrestore-align").experiment_id])
    told = [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, "reward_total")]
    assert sorted(told) == [(row["step"], row["reward_total"]) for row in whole.history]


class FallingGuard(Guard):
    """Sees sharpness fall while the reward rises."""

    looks = 0

    def measure(self, role: Role) -> Look:
        self.looks += role != "ref"
        values = {"reward_total": float(self.looks), "sharpness": 0.5 - 0.1 * self.looks}
        return Look(values, torch.zeros(2, 3, SIZE, SIZE))


def test_a_run_that_games_its_reward_is_ended_and_leaves_the_base(
    repository: Path, base: Path, pairs: PairSet, tmp_path: Path
) -> None:
    guard = {"every": 1, "faces": 2, "samples": 2, "patience": 2, "certainty": 0.0, "margins": {"sharpness": 0.05}}
    config = align_config(repository, epochs=9, guard=guard)
    pipeline = load(base)
    add_roles(pipeline, config.lora, config.seed)
    restorer, held_out = restorers(pipeline, pairs, config)
    watching = FallingGuard(held_out, composite(), config.guard, 0)
    checkpoints = Checkpoints("align", config, {}, tmp_path)
    around = surroundings(composite(), watching, held_out, checkpoints)
    aligned = align(restorer, around, config)
    assert len(aligned.history) == 2
    assert "sharpness" in aligned.watch.stopped
    assert aligned.watch.best_epoch == 0
    before = velocity(pipeline, "ref")
    set_role(pipeline, "policy", aligned.tensors)
    assert torch.equal(velocity(pipeline, "policy"), before)
    # repeating an ended run gives the same at once
    assert align(restorer, around, config).history == aligned.history
    strip = Image.open(checkpoints.folder / "live" / "faces.png")
    assert strip.size == (5 * SIZE, 2 * SIZE)
    assert (checkpoints.folder / "live" / "curves.png").stat().st_size > 10_000


class Darkness:
    """A judge of another mind than the reward."""

    def score(self, restored: Tensor, references: object) -> Tensor:  # noqa: ARG002 (the interface)
        return -restored.mean((1, 2, 3))


def test_a_run_whose_reward_rises_while_the_validation_judge_falls_ends_at_the_last_good_policy(
    repository: Path, base: Path, pairs: PairSet, tmp_path: Path
) -> None:
    guard = {"every": 1, "faces": 2, "samples": 2, "patience": 2, "certainty": 0.0, "margins": {"judge": 0.01}}
    config = align_config(repository, epochs=16, guard=guard, learning_rate=0.004, kl_weight=0.0, local_share=0.0)
    pipeline = load(base)
    add_roles(pipeline, config.lora, config.seed)
    restorer, held_out = restorers(pipeline, pairs, config)
    reward = composite()
    reward.judge = Darkness()  # type: ignore[assignment]  (what a validation judge is asked for)
    watching = Guard(held_out, reward, config.guard, config.seed)
    aligned = align(
        restorer, surroundings(reward, watching, held_out, Checkpoints("align", config, {}, tmp_path)), config
    )
    assert len(aligned.history) < config.epochs
    assert "judge below base" in aligned.watch.stopped
    assert aligned.watch.best_epoch <= len(aligned.history) - 2
    last = aligned.history[-1]
    assert last["held_out_reward_total"] > aligned.watch.base["reward_total"]
    assert last["held_out_judge"] < aligned.watch.base["judge"] - 0.01
    set_role(pipeline, "policy", aligned.tensors)
    kept = watching.measure("policy").values
    assert kept["reward_total"] == pytest.approx(aligned.watch.best_score, abs=1e-5)
    assert kept["judge"] >= aligned.watch.base["judge"] - 0.01


@pytest.fixture
def saved(pipeline: PrefRestorePipeline, config: AlignConfig, tmp_path: Path) -> Path:
    """A policy with an effect, as an artifact would be written."""
    shake(pipeline, "policy")
    folder = tmp_path / "policy"
    folder.mkdir()
    save_policy(folder, role_tensors(pipeline, "policy"), config.lora, "digest-of-base")
    # torch multiplies in another order where a matrix takes gradients
    pipeline.generator.requires_grad_(False)
    return folder


def test_saved_policy_acts_the_same_when_loaded(pipeline: PrefRestorePipeline, base: Path, saved: Path) -> None:
    loaded = load(base)
    load_policy(loaded, saved, "digest-of-base")
    assert torch.equal(velocity(loaded, "policy"), velocity(pipeline, "policy"))
    assert torch.equal(velocity(loaded, "ref"), velocity(pipeline, "ref"))
    assert not any(value.requires_grad for value in loaded.generator.transformer.parameters())


def test_peft_reads_the_policy(pipeline: PrefRestorePipeline, base: Path, saved: Path) -> None:
    loaded = load(base)
    peft.PeftModel.from_pretrained(loaded.generator.transformer, str(saved))
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, *pipeline.latent_shape, generator=generator)
    condition = pipeline.encode_condition(torch.rand(2, 3, SIZE, SIZE, generator=generator), ["", ""])
    with torch.no_grad():
        got = loaded.velocity(x_t, torch.tensor([0.9, 0.3]), condition)
    assert torch.equal(got, velocity(pipeline, "policy"))
    keys = set(load_file(saved / "adapter_model.safetensors"))
    assert f"{KEY_PREFIX}transformer_blocks.1.attn2.to_out.0.lora_B.weight" in keys


def test_saving_twice_gives_equal_bytes(
    pipeline: PrefRestorePipeline, config: AlignConfig, saved: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save_policy(again, role_tensors(pipeline, "policy"), config.lora, "digest-of-base")
    assert artifacts.digest(again) == artifacts.digest(saved)


def test_an_adapter_of_another_base_is_refused(base: Path, saved: Path) -> None:
    loaded = load(base)
    with pytest.raises(UserError, match="trained on another base"):
        load_policy(loaded, saved, "digest-of-something-else")
    (saved / "adapter_model.safetensors").write_bytes(b"\x10" * 20)
    with pytest.raises(UserError, match="is damaged"):
        load_policy(loaded, saved, "digest-of-base")
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no adapter"):
        load_policy(loaded, saved, "digest-of-base")


def test_an_adapter_that_does_not_fit_is_refused(pipeline: PrefRestorePipeline, base: Path, tmp_path: Path) -> None:
    fewer = {name: value for name, value in role_tensors(pipeline, "policy").items() if "blocks.0" in name}
    config = pipeline_lora(pipeline)
    save_policy(tmp_path, fewer, config, "same")
    with pytest.raises(UserError, match="does not fit this base"):
        load_policy(load(base), tmp_path, "same")


def pipeline_lora(pipeline: PrefRestorePipeline) -> LoraConfig:
    own = pipeline.generator.transformer.peft_config["policy"]
    return LoraConfig(rank=own.r, alpha=own.lora_alpha)
