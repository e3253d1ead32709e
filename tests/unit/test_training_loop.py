"""The shared training loop: schedule, resumption to the bit, order of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prefrestore.config import LoraConfig
from prefrestore.runtime.checkpoint import KEPT_CHECKPOINTS, Checkpoints
from prefrestore.runtime.distributed import Part
from prefrestore.runtime.seeding import batch_indices, derive, torch_generator
from prefrestore.runtime.training import FitSettings, fit, learning_rate

CONFIG = LoraConfig(rank=1, alpha=1)


class KilledError(Exception):
    """Stands for ``kill -9``: nothing after it runs."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def regression(module: nn.Module, stop_at: int | None = None):  # noqa: ANN201
    def step_loss(step: int, part: Part) -> dict[str, torch.Tensor]:
        if step == stop_at:
            raise KilledError
        x = torch.randn(16, 4, generator=torch_generator("x", step))[part.of(16)]
        return {"loss": (module(x) - x.sum(1, keepdim=True)).square().mean()}

    return step_loss


def settings(ema: float = 0.9) -> FitSettings:
    return FitSettings(steps=30, learning_rate=1e-2, checkpoint_every=7, ema_decay=ema)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [3, 7, 20, 29])
def test_resumed_run_is_bit_equal(tmp_path: Path, ema: float, stop_at: int) -> None:
    whole, broken, resumed = network(), network(), network()
    curve = fit("whole", {"n": whole}, regression(whole), settings(ema), Checkpoints("a", CONFIG, {}, tmp_path))
    there = Checkpoints("b", CONFIG, {}, tmp_path)
    with pytest.raises(KilledError):
        fit("broken", {"n": broken}, regression(broken, stop_at), settings(ema), there)
    again = fit("resumed", {"n": resumed}, regression(resumed), settings(ema), Checkpoints("b", CONFIG, {}, tmp_path))
    assert again == curve
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, second = network(), network()
    fit("first", {"n": first}, regression(first), settings(), Checkpoints("a", CONFIG, {}, tmp_path))
    fit("second", {"n": second}, regression(second, stop_at=0), settings(), Checkpoints("a", CONFIG, {}, tmp_path))
    assert torch.equal(first[0].weight, second[0].weight)


def test_checkpoints_rotate_and_are_not_adopted_across_configurations(tmp_path: Path) -> None:
    module = network()
    mine = Checkpoints("a", CONFIG, {}, tmp_path)
    fit("run", {"n": module}, regression(module), settings(), mine)
    assert len(list(mine.folder.iterdir())) == KEPT_CHECKPOINTS
    assert Checkpoints("a", LoraConfig(rank=2, alpha=1), {}, tmp_path).latest() is None


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    module = network()

    def step_loss(_step: int, _part: Part) -> dict[str, torch.Tensor]:
        return {"loss": module[0].weight.sum() * torch.nan}

    with pytest.raises(FloatingPointError, match="step 0"):
        fit("run", {"n": module}, step_loss, settings(), Checkpoints("a", CONFIG, {}, tmp_path))


def test_rate_rises_then_falls_to_a_twentieth() -> None:
    chosen = FitSettings(steps=1000, learning_rate=1.0, checkpoint_every=1)
    rates = [learning_rate(chosen, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 30)
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) in (29, 30)
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)


def test_every_epoch_visits_every_sample_once_in_a_new_order() -> None:
    seen = np.concatenate([batch_indices(10, 4, seed=3, step=step) for step in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_seeds_tell_types_and_places_apart() -> None:
    assert derive(1, "2") != derive("1", 2)
    assert derive("ab", "c") != derive("a", "bc")
    assert 0 <= derive("x") < 2**63
