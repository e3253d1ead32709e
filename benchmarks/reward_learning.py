"""How held-out accuracy of the reward grows with the number of judged pairs, beside chance, the oracle and judges that
see HQ; and how well it is calibrated. Prints tables; writes JSON and a page with both curves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plainly
import torch
from markupsafe import Markup

from prefrestore import artifacts, configfile
from prefrestore.config import TrainRewardConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.data.preferences import read_judgements
from prefrestore.evaluation.charts import line_chart, reliability_chart
from prefrestore.reward_model.collect import JUDGEMENTS
from prefrestore.reward_model.dataset import (
    CandidateSet,
    Comparisons,
    Scene,
    build_scene,
    held_out_faces,
    load_candidates,
    quality_columns,
    split_by_face,
    to_comparisons,
)
from prefrestore.reward_model.measure import measure_reward
from prefrestore.reward_model.roles import REWARD, split_by_role
from prefrestore.reward_model.trainer import make_batch, train_network
from prefrestore.runtime import seeding
from prefrestore.runtime.checkpoint import Checkpoints

SHARES = (0.125, 0.25, 0.5, 1.0)
STYLE = (
    "body{font:16px system-ui;max-width:42rem;margin:2rem auto}svg{width:100%}svg text{font-size:10px}"
    "polyline{fill:none;stroke:#2563eb;stroke-width:1.5}.ideal,.raw{stroke:#999}.grid{stroke:#ddd}text.y{text-anchor:end}"
)


@dataclass(frozen=True)
class Data:
    """Everything a run of this benchmark trains and judges with."""

    candidates: CandidateSet
    scene: Scene
    training: Comparisons
    held_out: Comparisons
    qualities: Mapping[str, np.ndarray]
    inputs: Mapping[str, Path]


def load(folders: Mapping[str, Path], config: TrainRewardConfig) -> Data:
    """Load artifacts and split the reward's judgements by face."""
    candidates = load_candidates(folders["candidates"])
    scene = build_scene(load_pairs(folders["pairs"], "train"), candidates.groups)
    judged = to_comparisons(read_judgements(folders["preferences"] / JUDGEMENTS), candidates)
    own = split_by_role(judged, candidates.groups, folders["preferences"])[REWARD]
    training, held_out = split_by_face(own, candidates.groups, held_out_faces(own.groups(candidates.groups), config))
    qualities = quality_columns(folders["preferences"], candidates)
    return Data(candidates, scene, training, held_out, qualities, folders)


def train_on(data: Data, count: int, config: TrainRewardConfig) -> dict[str, Any]:
    """Train on ``count`` random pairs and return the held-out figures."""
    chosen = seeding.rng(config.seed, "subset").permutation(len(data.training))[:count]
    make = partial(make_batch, data.candidates, data.scene, data.training.take(chosen), config)
    network, _ = train_network(config, make, Checkpoints(f"reward_learning-{count}", config, data.inputs))
    figures = measure_reward(network, data.candidates, data.scene, data.held_out, data.qualities, config.seed)
    return {"pairs": count, "seed": config.seed, **figures}


def rows_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and range over seeds for every number of pairs."""
    rows = []
    for count in sorted({run["pairs"] for run in runs}):
        own = [run for run in runs if run["pairs"] == count]
        accuracy = [run["judges"]["reward"]["accuracy"] for run in own]
        rows.append(
            {
                "pairs": count,
                "accuracy": float(np.mean(accuracy)),
                "least": min(accuracy),
                "most": max(accuracy),
                "gap_closed": float(np.mean([run["gap_closed"] for run in own])),
                "calibration_error": float(np.mean([run["calibration"]["error_after"] for run in own])),
            }
        )
    return rows


def page(rows: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> str:
    """Return the two curves as one HTML page that needs nothing else."""
    bins = last["calibration"]["reliability"]
    curve = line_chart([row["pairs"] for row in rows], [row["accuracy"] for row in rows], "held-out accuracy")
    calibration = reliability_chart([row["stated"] for row in bins], [row["observed"] for row in bins])
    return str(
        Markup(
            "<!doctype html><meta charset=utf-8><title>Reward</title><style>{}</style>"
            "<h1>Held-out accuracy by number of judged pairs</h1>{}<h1>Observed against stated share of wins</h1>{}"
        ).format(Markup(STYLE), curve, calibration)
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("pairs", "candidates", "preferences"):
        parser.add_argument(f"--{name}", type=Path, default=Path("artifacts") / name)
    parser.add_argument("--config", type=Path, default=Path("params.yaml"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="shares of the training pairs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/reward_learning.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = configfile.load_section(options.config, "train_reward", TrainRewardConfig)
    data = load({name: getattr(options, name) for name in ("pairs", "candidates", "preferences")}, config)
    plans = [config.model_copy(update={"seed": config.seed + turn}) for turn in range(options.seeds)]
    counts = [max(1, round(share * len(data.training))) for share in options.shares]
    runs = [train_on(data, count, plan) for count in counts for plan in plans]
    rows, last = rows_of(runs), runs[-1]
    print(f"{len(data.held_out)} held-out judgements on {last['held_out_faces']} faces; {options.seeds} seeds")
    print(f"{'pairs':>6} {'accuracy':>9} {'least':>6} {'most':>6} {'gap closed':>11} {'calibration error':>18}")
    for row in rows:
        print(
            f"{row['pairs']:6d} {row['accuracy']:9.3f} {row['least']:6.3f} {row['most']:6.3f} "
            f"{row['gap_closed']:11.2f} {row['calibration_error']:18.3f}"
        )
    print(f"chance {last['chance']:.3f}; " + _judges(last["judges"]))
    print("orders pairs as each metric does: " + _judges(last["agreement"]))
    for name, fall in last["sensitivity"].items():
        print(f"{name:14} lowers the score of {fall['share_lower']:.0%}, by {fall['mean_fall']:.2f} log-odds")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, {"rows": rows, "runs": runs})
    options.json.with_suffix(".html").write_text(page(rows, last), encoding="utf-8")


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in judges.items() if row["accuracy"] is not None)


if __name__ == "__main__":
    plainly.run(main)
