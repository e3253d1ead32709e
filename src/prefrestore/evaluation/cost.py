"""What a restoration costs, in numbers that do not depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from prefrestore import artifacts
from prefrestore.models.adapters import load_policy
from prefrestore.models.pipeline import PrefRestorePipeline

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Cost of the aligned model.

    Attributes:
        parameters: of all networks, adapters included.
        sampler_steps: forward passes of the generator for a face.
        flops_per_face: floating-point operations of matrix products, convolutions and attention for one face (2 per
            multiply-add).
    """

    parameters: int
    sampler_steps: int
    flops_per_face: int


def measure_cost(base: Path, policy: Path, sampler_steps: int) -> Cost:
    """Restore one grey face and count."""
    pipeline = PrefRestorePipeline.from_pretrained(base)
    load_policy(pipeline, policy, artifacts.digest(base))
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    grey = torch.full((1, 3, pipeline.image_size, pipeline.image_size), 0.5)
    with FlopCounterMode(display=False) as counter:
        pipeline.restore(grey, [""], [0], sampler_steps)
    parameters = sum(value.numel() for network in networks for value in network.parameters())
    return Cost(parameters, sampler_steps, int(counter.get_total_flops()))
