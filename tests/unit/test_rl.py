"""Pools, rollouts' records and training batches."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from prefrestore import configfile
from prefrestore.config import AlignConfig
from prefrestore.data.pairs import PairSet
from prefrestore.errors import UserError
from prefrestore.rewards.composite import CompositeReward, Part
from prefrestore.rewards.faces import FaceReader
from prefrestore.rl.batches import judge, noise_level, put_noise, total_of, update_rows
from prefrestore.rl.guard import Guard, Watch, below_margin, psnr, score
from prefrestore.rl.local import nearness
from prefrestore.rl.pool import draw_pools, epoch_rows
from prefrestore.rl.rollout import known_parts, solver, spread, without_broken
from prefrestore.rl.trainer import thin
from prefrestore.rl.types import Rollout, RolloutGroup

NAN = math.nan


def align_config(repository: Path, **changes: object) -> AlignConfig:
    plain = configfile.read_yaml(repository / "presets" / "smoke.yaml")["align"]
    return configfile.parse(AlignConfig, {**plain, **changes}, "test")


@pytest.fixture
def config(repository: Path) -> AlignConfig:
    return align_config(repository)


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    """Seven faces with three variants each; every picture is flat, of a value that names it."""
    hq = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) * np.ones((1, 16, 16, 3), np.uint8)
    lq = 10 * hq[:, None] + np.arange(3, dtype=np.uint8).reshape(1, 3, 1, 1, 1)
    return PairSet(
        ids=tuple(f"face-{row}" for row in range(7)),
        captions=tuple(f"caption {row}" for row in range(7)),
        hq=hq,
        lq=lq,
        records=((),) * 7,
        landmarks=np.arange(7, dtype=np.float32).reshape(7, 1, 1) * np.ones((1, 68, 2), np.float32),
    )


def rollout(rewards: list[list[float]]) -> Rollout:
    generator = torch.Generator().manual_seed(0)

    def group(place: int, row: list[float]) -> RolloutGroup:
        x0 = torch.randn(len(row), 2, 4, 4, generator=generator)
        local = nearness(x0, torch.zeros(2, 4, 4))
        return RolloutGroup(f"g{place}", place, x0, local, {"structure": torch.tensor(row)}, 0.1)

    return Rollout(tuple(group(place, row) for place, row in enumerate(rewards)))


def composite(weight: float = 1.0) -> CompositeReward:
    return CompositeReward((), {"structure": Part(weight, 0.0, 1.0)}, FaceReader(1))


def test_pools_hold_out_faces_and_keep_rows_together(pairs: PairSet) -> None:
    pool, held_out = draw_pools(pairs, 100, 2, 0.5, 0)
    assert len(pool) == 15
    assert len(held_out) == 2
    trained, kept = ({name.split("/")[0] for name in one.ids} for one in (pool, held_out))
    assert not trained & kept
    assert len(set(pool.ids)) == len(pool)
    for row, name in enumerate(pool.ids):
        face, variant = (int(part) for part in name.removeprefix("face-").split("/"))
        assert pool.hq[row, 0, 0, 0] == face
        assert pool.lq[row, 0, 0, 0] == 10 * face + variant
        assert pool.landmarks[row, 0, 0] == face
        assert pool.texts[row] in ("", f"caption {face}")
    assert 0 < sum(map(bool, pool.texts)) < 15
    assert all(held_out.texts)


def test_a_pool_may_be_bounded(pairs: PairSet) -> None:
    pool, _ = draw_pools(pairs, 4, 2, 1.0, 0)
    assert len(pool) == 4
    references = pool.references([3, 3, 0])
    assert references.ids == [pool.ids[3], pool.ids[3], pool.ids[0]]
    assert references.hq is not None
    assert float(references.hq[1, 0, 0, 0]) == pytest.approx(pool.hq[3, 0, 0, 0] / 255)


def test_too_few_faces_are_a_users_error(pairs: PairSet) -> None:
    with pytest.raises(UserError, match="hold out fewer"):
        draw_pools(pairs, 4, 7, 1.0, 0)
    with pytest.raises(UserError, match="only 4 LQ images"):
        epoch_rows(4, 5, 0, 0)


def test_epochs_pass_evenly_over_the_pool_and_never_twice_over_one_image() -> None:
    seen = Counter[int]()
    for epoch in range(12):
        rows = epoch_rows(13, 3, 5, epoch)
        assert len(set(rows)) == 3
        seen.update(rows)
    assert max(seen.values()) <= 3
    assert epoch_rows(13, 3, 5, 7) == epoch_rows(13, 3, 5, 7)
    assert epoch_rows(13, 3, 5, 0) != epoch_rows(13, 3, 5, 4)


def test_judging_turns_rewards_into_optimality(repository: Path) -> None:
    config = align_config(repository, local_share=0.0)
    judged = judge(rollout([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [1.0, NAN, 2.0, NAN]]), composite(), config)
    batch = judged.batch
    whole = batch.optimality[:, 0, 0, 0]
    assert torch.equal(batch.optimality, whole.reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4))
    assert whole[:4].diff().gt(0).all()
    assert whole[4:8].tolist() == [0.5] * 4
    assert batch.weight.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0]
    assert whole[[9, 11]].tolist() == [0.5, 0.5]
    assert batch.rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.group_ids[4] == "g1"
    assert batch.members.tolist() == [0, 1, 2, 3] * 3
    assert judged.row["nan_structure"] == 2
    assert judged.row["zero_variance_share"] == pytest.approx(1 / 3)


def test_local_share_mixes_places_into_the_advantage(repository: Path) -> None:
    rewards = rollout([[0.0, 1.0, 2.0, 3.0]])
    scalar, mixed, local = (
        judge(rewards, composite(), align_config(repository, local_share=share)).batch.optimality
        for share in (0.0, 0.5, 1.0)
    )
    assert mixed.shape == (4, 1, 4, 4)
    torch.testing.assert_close(mixed, (scalar + local) / 2)
    error = rewards.x0.square().mean(1)
    assert torch.equal(local[:, 0].argmax(0), error.argmin(0))


def test_raw_sum_is_the_published_one_and_spreads_nan(repository: Path) -> None:
    raw = align_config(repository, reward_sum="raw")
    parts = {"structure": torch.tensor([1.0, NAN, 4.0])}
    total = total_of(parts, torch.zeros(3, dtype=torch.int64), composite(0.5), raw)
    assert total[[0, 2]].tolist() == [0.5, 2.0]
    assert total[1].isnan()


def test_updates_take_whole_groups_each_once(repository: Path) -> None:
    config = align_config(repository, groups=6, updates=3, pool=6)
    batch = judge(rollout([[0.0, 1.0]] * 6), composite(), config).batch
    shares = [update_rows(batch, config, 4, update) for update in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(12))
    assert all(len({batch.group_ids[row] for row in share}) == 2 for share in shares)
    assert shares != [update_rows(batch, config, 5, update) for update in range(3)]


@pytest.mark.parametrize("shared", [True, False])
def test_noise_depends_on_the_sample_alone_and_may_be_shared(repository: Path, shared: bool) -> None:
    config = align_config(repository, shared_noise=shared)
    batch = judge(rollout([[0.0, 1.0, 2.0]] * 3), composite(), config).batch
    whole = put_noise(batch, range(9), config, 2, 1)
    part = put_noise(batch, [4, 5], config, 2, 1)
    torch.testing.assert_close(part.x_t, whole.x_t[4:6], rtol=0, atol=0)
    noise = (whole.x_t - (1 - whole.sigma).reshape(-1, 1, 1, 1) * whole.x0) / whole.sigma.reshape(-1, 1, 1, 1)
    assert torch.allclose(noise[3], noise[4], atol=1e-3) == shared
    assert bool(whole.sigma[3] == whole.sigma[4]) == shared
    assert not torch.allclose(noise[0], noise[3], atol=1e-3)
    other = put_noise(batch, range(9), config, 3, 1)
    assert not torch.equal(other.x_t, whole.x_t)


def test_levels_are_stratified_or_distinct_values_of_the_grid(repository: Path) -> None:
    stratified = align_config(repository, timesteps=4, kl_timesteps=1)
    keys = [(0, 1, f"g{group}", -1) for group in range(200)]
    for level in range(4):
        drawn = [noise_level(stratified, key, level) for key in keys]
        assert min(drawn) > level / 4
        assert max(drawn) <= (level + 1) / 4
        assert len(set(drawn)) > 50
    paper = align_config(
        repository, sampler_steps=30, timesteps=29, timestep_choice="grid", solver_end="paper", kl_timesteps=29
    )
    drawn = [noise_level(paper, keys[0], level) for level in range(29)]
    assert len(set(drawn)) == 29
    assert {round(30 * sigma) for sigma in drawn} <= set(range(1, 31))
    assert drawn != [noise_level(paper, keys[1], level) for level in range(29)]


def test_published_solver_ends_at_one_thirtieth(repository: Path) -> None:
    paper = align_config(repository, sampler_steps=30, solver_end="paper")
    assert solver(paper).sigmas()[-1] == pytest.approx(1 / 30)
    assert len(solver(paper).sigmas()) == 30
    assert solver(align_config(repository)).sigmas()[-1] == 0


def test_broken_latents_and_infinite_rewards_are_no_judgement() -> None:
    latents, broken = without_broken(torch.tensor([[1.0, 2.0], [NAN, 0.0], [math.inf, 1.0]]))
    assert broken.tolist() == [False, True, True]
    assert latents.tolist() == [[1, 2], [0, 0], [0, 0]]
    parts = known_parts({"identity": torch.tensor([math.inf, 0.5, 0.5])}, torch.tensor([False, True, False]))
    assert parts["identity"].isnan().tolist() == [True, True, False]


def test_spread_is_the_standard_deviation_over_samples() -> None:
    images = torch.rand(5, 3, 8, 8)
    assert spread(images) == pytest.approx(float(np.std(images.numpy().astype(np.float64), axis=0, ddof=1).mean()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 4, "updates": 3}, "multiple of updates"),
        ({"kl_timesteps": 5}, "must not exceed timesteps"),
        ({"timestep_choice": "grid", "timesteps": 9}, "grid has 4 levels"),
        ({"group_size": 1}, "group_size"),
        ({"old_decay": "2"}, "old_decay"),
    ],
)
def test_contradictory_settings_are_refused(repository: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        align_config(repository, **changes)


class ScriptedGuard(Guard):
    """The guard's judgement, with measures given by hand."""

    def __init__(self, config: AlignConfig) -> None:
        self._config = config.guard


def measures(reward_total: float, sharpness: float) -> dict[str, float]:
    return {"reward_total": reward_total, "sharpness": sharpness, "identity": 0.8, "structure": NAN, "psnr": 20.0}


def test_guard_keeps_the_best_and_ends_a_run_that_games_its_reward(config: AlignConfig) -> None:
    guard = ScriptedGuard(config)
    watch = Watch(measures(0.0, 0.5), 0, 0.0)
    watch = guard.judge(watch, measures(0.3, 0.5), 2)
    assert (watch.best_epoch, watch.best_score, watch.stopped) == (2, 0.3, "")
    watch = guard.judge(watch, measures(0.2, 0.48), 4)
    assert watch.best_epoch == 2
    watch = guard.judge(watch, measures(0.9, 0.44), 6)
    assert (watch.best_epoch, watch.breaches, watch.stopped) == (2, 1, "")
    recovered = guard.judge(watch, measures(0.5, 0.5), 8)
    assert (recovered.best_epoch, recovered.breaches) == (8, 0)
    ended = guard.judge(watch, measures(1.9, 0.3), 8)
    assert ended.best_epoch == 2
    assert ended.stopped.startswith("epoch 8: sharpness below base")


def test_the_kept_policy_is_preferred_and_certain(config: AlignConfig) -> None:
    base = {**measures(0.1, 0.5), "spread": 0.04}
    assert score(base, base, 1.0) == pytest.approx(0.1)
    assert score({**base, "spread": 0.03}, base, 1.0) == pytest.approx(0.1 + 0.25)
    assert score({**base, "spread": 0.03}, base, 0.0) == pytest.approx(0.1)
    assert score(measures(0.2, 0.5), base, 1.0) == pytest.approx(0.2)
    assert score({"spread": 0.01}, base, 1.0) == -math.inf
    guard = ScriptedGuard(config)
    watch = guard.judge(Watch(base, 0, 0.1), {**measures(0.3, 0.5), "spread": 0.04}, 2)
    watch = guard.judge(watch, {**measures(0.25, 0.5), "spread": 0.03}, 4)
    assert (watch.best_epoch, watch.best_score) == (4, pytest.approx(0.5))


def test_margins_name_what_fell() -> None:
    base = measures(0.0, 0.5)
    assert below_margin({**base, "identity": 0.7, "psnr": 19.0}, base, {"identity": 0.05, "psnr": 2.0}) == ["identity"]
    assert below_margin(measures(0, -math.inf), base, {"sharpness": 0.1, "structure": 0.1}) == ["sharpness"]


def test_psnr_against_closed_form() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.6)).item() == pytest.approx(20.0, abs=1e-4)


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    rows = [{"step": float(step)} for step in range(1, 1002)]
    assert thin(rows[:150]) == rows[:150]
    thinned = thin(rows)
    assert 150 <= len(thinned) <= 201
    assert thinned[-1] == rows[-1]
    assert thin([]) == []
