"""What the benchmarks of the restorer share: a restorer with random weights, and two ways measured in turn."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from prefrestore import configfile
from prefrestore.data.pairs import PairSet
from prefrestore.models.codec import build_codec
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.sft.pretrain import build_pipeline

PRESETS = Path(__file__).parents[1] / "presets"
QUICK_SIDE, QUICK_IDS = 182, 169
"""Side that the image tokenizer sees in a quick run, pixels, and the ids it then gives."""

Run = Callable[[], object]


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of the options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", default="bench")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_IDS} ids an image and few steps: ratios are others"
    )
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way, in turn; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser


def random_restorer(preset: str, image_size: int, quick: bool) -> PrefRestorePipeline:
    """Return a preset's restorer with random weights, none of them zero, so that every part has a say."""
    config = configfile.load(PRESETS / f"{preset}.yaml")
    torch.manual_seed(0)
    blank = np.zeros((1, image_size, image_size, 3), np.uint8)
    pairs = PairSet(("face",), ("a face",), blank, blank[:, None], ((),), np.full((1, 68, 2), np.nan, np.float32))
    sizes = config.train_codec.tokenizer.model_copy(update={"image_size": QUICK_SIDE} if quick else {})
    codec, tokenizer = build_codec(config.train_codec), build_tokenizer(sizes)
    pipeline = build_pipeline(config.pretrain, codec.eval(), tokenizer.eval(), pairs)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for value in pipeline.integrator.model.layers.parameters():
            value.add_(0.05 * torch.randn_like(value))  # or else it repeats one id
        for module in (pipeline.generator, pipeline.connectors):
            for value in module.parameters():
                if not value.any():
                    value.normal_(std=0.02)
    for name in ("integrator", "connectors", "generator", "lq_encoder"):
        getattr(pipeline, name).eval()
    return pipeline


@dataclass(frozen=True)
class Cost:
    """FLOPs of one run, and the median processor seconds of some."""

    flops: float
    seconds: float


def _sdpa(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _sdpa_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _convolution_backward(grad: Any, _inputs: Any, weight: Any, *others: Any, **__: Any) -> int:
    """As much as forward for each gradient wanted; torch's own formula takes grouped convolutions for dense ones."""
    wanted = others[-1]
    return 2 * math.prod(grad) * math.prod(weight[1:]) * sum(wanted[:2])


def flops_of(run: Run) -> int:
    """Return the FLOPs of matrix products, convolutions and attention; torch counts none of attention on CPUs."""
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
        torch.ops.aten.convolution_backward: _convolution_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        run()
    return counter.get_total_flops()


def compare(ways: Mapping[str, Run], repeats: int) -> dict[str, Cost]:
    """Count each way's FLOPs in a run that warms it up, then time the ways in turn."""
    flops = {name: flops_of(run) for name, run in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: Cost(flops[name], median(seconds[name])) for name in ways}


def total(parts: Mapping[str, Mapping[str, Cost]]) -> dict[str, Cost]:
    """Return the sum over parts of both ways' costs."""
    return {
        way: Cost(sum(part[way].flops for part in parts.values()), sum(part[way].seconds for part in parts.values()))
        for way in ("reference", "ours")
    }


def table(parts: Mapping[str, Mapping[str, Cost]]) -> dict[str, dict[str, float]]:
    """Print and return, part by part: cost of ``reference`` and ``ours``, both ratios, and reached over allowed."""
    print(f"{'part':<22}{'reference':>20}{'ours':>20}{'FLOPs allow':>13}{'reached':>9}{'share':>7}")
    rows = {}
    for name, costs in parts.items():
        old, new = costs["reference"], costs["ours"]
        allowed, reached = old.flops / new.flops, old.seconds / new.seconds
        told = [f"{cost.flops / 1e9:9.1f} GF {cost.seconds:6.2f} s" for cost in (old, new)]
        print(f"{name:<22}{told[0]:>20}{told[1]:>20}{allowed:12.2f}x{reached:8.2f}x{reached / allowed:7.0%}")
        rows[name] = {
            "reference_flops": old.flops,
            "ours_flops": new.flops,
            "reference_seconds": old.seconds,
            "ours_seconds": new.seconds,
            "allowed": allowed,
            "reached": reached,
        }
    return rows
