"""The processes that work on one stage, and the device that each works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object

from prefrestore.runtime.distributed import Part, is_writer

T = TypeVar("T")


def accelerator() -> Accelerator:
    """Return the processes and the device that training runs on; without a GPU this is the CPU.

    Step 1 of pretraining leaves some parameters without gradient, hence the search for unused ones.
    """
    options = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[options])


class Crew:
    """What the processes of a run share out and tell each other; alone, nothing is sent."""

    def __init__(self) -> None:
        self._accelerator = accelerator()

    @property
    def device(self) -> torch.device:
        """Return this process's device."""
        return self._accelerator.device

    @property
    def part(self) -> Part:
        """Return which of as many equal parts as there are processes is this one's."""
        return Part(self._accelerator.process_index, self._accelerator.num_processes)

    def gather(self, own: Sequence[T]) -> list[T]:
        """Return what all processes have, in the order of their parts; tensors should lie on the CPU."""
        return list(gather_object(list(own))) if self.part.count > 1 else list(own)

    def from_writer(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives the first process; the others wait for it."""
        told: list[Any] = [make() if is_writer() else None]
        return broadcast_object_list(told)[0] if self.part.count > 1 else told[0]

    def sum_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace every tensor by its sum over all processes; all have the same shapes."""
        if self.part.count > 1:
            flat = self._accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
            for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def sum_terms(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Return the sums of named numbers over all processes; all have the same names."""
        if self.part.count == 1 or not terms:
            return dict(terms)
        values = torch.tensor(list(terms.values()), dtype=torch.float64, device=self.device)
        return dict(zip(terms, self._accelerator.reduce(values, "sum").tolist(), strict=True))
