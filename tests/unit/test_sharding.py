"""Weights cut over processes: each holds its part, and the parts are the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from prefrestore.runtime.sharding import copy_whole, cut_like, shard, whole


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 2))


def _gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _one_of_two(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    plain, cut = _model(), _model()
    shard(cut, (Block,), torch.device("cpu"))

    own = sum(parameter.to_local().numel() for parameter in cut.parameters())
    assert own <= 0.6 * sum(parameter.numel() for parameter in plain.parameters())

    expected = _gradients(plain, x)
    for name, gradient in _gradients(cut, x[3 * rank : 3 * rank + 3]).items():
        assert torch.allclose(whole(gradient), expected[name], atol=1e-6), name

    first = next(cut.parameters())
    assert torch.equal(cut_like(whole(first.detach()), first).to_local(), first.detach().to_local())
    number = torch.tensor(3.0)
    assert cut_like(number, first) is number

    empty = _model()
    for parameter in empty.parameters():
        nn.init.zeros_(parameter)
    copy_whole({"model": cut}, {"model": empty})
    assert all(torch.equal(empty.state_dict()[name], value) for name, value in plain.state_dict().items())
    dist.destroy_process_group()


def test_two_processes_hold_half_each_and_together_the_whole(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said


if __name__ == "__main__":
    _one_of_two(int(sys.argv[1]), sys.argv[2])
