"""Weights cut over the processes (FSDP2, ``torch.distributed.fsdp.fully_shard``) instead of replicated (DDP)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, blocks: tuple[type[nn.Module], ...], device: torch.device) -> nn.Module:
    """Cut parameters, and with them gradients and optimizer states, over all processes; in place.

    Modules of the classes ``blocks`` are gathered, used and cut again one by one, the rest for the whole step.
    Gradients are averaged over processes, as DDP does.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, blocks):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its parts; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(value: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor cut as another of its shape is; numbers, such as an optimizer's count of steps, stay."""
    if not isinstance(model, DTensor) or value.shape != model.shape:
        return value
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)


@torch.no_grad()
def copy_whole(source: Mapping[str, nn.Module], target: Mapping[str, nn.Module]) -> None:
    """Copy the parameters of cut modules into whole ones of the same names; every process must ask."""
    for name, module in target.items():
        given = dict(source[name].named_parameters())
        for key, parameter in module.named_parameters():
            parameter.copy_(whole(given[key].detach()))
