"""``prefrestore model show --preset``: what a preset's networks cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from prefrestore import configfile
from prefrestore.commands.config import preset_file
from prefrestore.commands.report import aligned

if TYPE_CHECKING:
    from prefrestore.models.footprint import Part

GIB = 2**30


def show_preset(preset: str) -> None:
    """Print parameters, memory and operations of a preset's networks, which take no memory for it."""
    config = configfile.load(preset_file(preset))
    from prefrestore.models.footprint import footprint

    side, steps = config.ingest.image_size, config.pretrain.sampler_steps
    parts = footprint(config)
    click.echo(f"{preset}: one image of {side} px without a caption, {steps} sampling steps, no guidance")
    for line in aligned(list(_rows(parts))):
        click.echo(line)


def _rows(parts: list[Part]) -> Iterator[list[str]]:
    yield ["component", "parameters [M]", "float32 [GiB]", "bfloat16 [GiB]", "runs", "GFLOP a run", "TFLOP"]
    for part in parts:
        each = f"{part.flops / part.runs / 1e9:.2f}" if part.runs else ""
        yield [part.name, *_sizes(part.parameters), str(part.runs), each, f"{part.flops / 1e12:.4f}"]
    total = sum(part.parameters for part in parts)
    yield ["all", *_sizes(total), "", "", f"{sum(part.flops for part in parts) / 1e12:.4f}"]


def _sizes(parameters: int) -> list[str]:
    if not parameters:
        return ["", "", ""]
    return [f"{parameters / 1e6:.2f}", f"{4 * parameters / GIB:.2f}", f"{2 * parameters / GIB:.2f}"]
