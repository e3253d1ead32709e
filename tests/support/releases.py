"""What the stage publish reads, without the graph that makes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from prefrestore import artifacts
from prefrestore.evaluation.summary import metric_table
from prefrestore.stage import STAGES

INPUTS = STAGES["publish"].inputs
STAGE_OF = {port: row.name for row in STAGES.values() for port in row.outputs}


def weights(seed: int, size: int = 30_000) -> bytes:
    """Return the bytes of a file of weights."""
    return save({"w": np.random.default_rng(seed).normal(size=size).astype(np.float32)})


def candidate(root: Path, seed: int, *, passed: bool, size: int = 30_000) -> dict[str, Path]:
    """Return the paths of publish's ports, with the files that it reads; ``size`` is that of the base, in numbers."""
    estimate = {"mean": 20.0 + seed, "std": 1.0, "n": 8, "nan": 0, "low": 19.0, "high": 22.0}
    data = {"config": {"recipe": "r", "eval_recipe": "e"}, "counts": {"train": 8, "eval": 8}, "licences": {"CC0": 16}}
    sentence = "Passed: all 1 required rules hold." if passed else "Not passed: PSNR."
    verdict = {"passed": passed, "sentence": sentence, "confidence": 0.95, "comparisons": [], "limits": [], "bands": []}
    files = {
        "base/model.safetensors": weights(0, size),
        "policy/adapter.safetensors": weights(seed, 50),
        "reward/reward.safetensors": weights(1, 50),
        "metrics/metrics.json": json.dumps({"columns": {"policy": {"psnr": estimate}}}),
        "metrics/metric_table.json": json.dumps(metric_table()),
        "metrics/data.json": json.dumps(data),
        "report/report.html": "<p>",
        "verdict/verdict.json": json.dumps(verdict),
    }
    folder = root / f"candidate-{seed}"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in INPUTS:
        artifacts.write_manifest(folder / name, artifacts.Manifest(name, STAGE_OF[name], {}, {"pairs": "abc"}))
    return {name: folder / name for name in (*INPUTS, "release")}
