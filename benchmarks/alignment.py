"""Alignment in the published settings and in ours: validation score against processor time; and a reward that is gamed.

``race``: two runs from one base, one seed and one budget of processor seconds each; the score is the composite reward
on faces held out of training, drawn as the preset draws them in both. The published settings run in our code, which
computes conditions once and no null branch: what is compared is the settings alone. ``gamed``: a run that is paid for
sharpness alone, and what the guard makes of it. Writes JSON and, of the race, the curves as a picture.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plainly
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefrestore import artifacts, configfile
from prefrestore.config import AlignConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.models.adapters import Role, add_roles
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rewards.composite import CompositeReward, Part, load_reward
from prefrestore.rewards.sharpness import SharpnessReward
from prefrestore.rl.guard import Guard, Look, Watch
from prefrestore.rl.live import LiveView
from prefrestore.rl.pool import ConditionCache, draw_pools
from prefrestore.rl.rollout import Restorer, solver
from prefrestore.rl.trainer import Aligned, Surroundings, align
from prefrestore.rl.types import FacePool
from prefrestore.runtime.checkpoint import Checkpoints

PUBLISHED: Mapping[str, Any] = {
    "group_size": 24,
    "sampler_steps": 30,
    "solver_end": "paper",
    "reward_sum": "raw",
    "advantage_norm": "global_std",
    "local_share": 0.0,
    "spread_weight": 0.0,
    "updates": 1,
    "timesteps": 29,
    "timestep_choice": "grid",
    "shared_noise": False,
    "kl_timesteps": 29,
    "learning_rate": 3e-4,
}
"""Section 4 of the paper; groups, adapters and guard stay the preset's."""
ENDLESS = 1_000_000
FRACTION = 1 / 5
"""Of the published settings' time in which ours should reach their final score."""


@dataclass(frozen=True)
class Point:
    """One look: processor seconds of training until then, epochs, and what was measured."""

    seconds: float
    epoch: int
    values: Mapping[str, float]


class Clocked(Guard):
    """A guard that looks at equal parts of a budget of processor seconds and ends the run with it."""

    budget, looks = float("inf"), 1

    def begin(self, budget: float, looks: int) -> None:
        """Start the clock."""
        self.budget, self.looks = budget, looks
        self.points: list[Point] = []
        self._start, self._apart = time.process_time(), 0.0

    def seconds(self) -> float:
        """Return processor seconds since the start, without the looks."""
        return time.process_time() - self._start - self._apart

    def measure(self, role: Role) -> Look:
        """Measure off the clock."""
        before = time.process_time()
        look = super().measure(role)
        self._apart += time.process_time() - before
        if role == "ref":
            self.points.append(Point(0.0, 0, look.values))
        return look

    def due(self, epoch: int, epochs: int) -> bool:  # noqa: ARG002 (the budget ends the run)
        """Return whether the next part of the budget is used up."""
        return self.seconds() >= len(self.points) * self.budget / self.looks

    def judge(self, watch: Watch, values: Mapping[str, float], epoch: int) -> Watch:
        """Note the look; end the run at the end of the budget alone."""
        self.points.append(Point(self.seconds(), epoch, values))
        told(self.points[-1])
        return replace(watch, stopped="budget" if self.seconds() >= self.budget else "")


def told(point: Point) -> None:
    """Print one look."""
    print(f"  {point.seconds:7.0f} s  {told_values(point.epoch, point.values)}", flush=True)


def told_values(epoch: int, values: Mapping[str, float]) -> str:
    """Return a look in words."""
    return "  ".join((f"epoch {epoch:4}", *(f"{name} {values[name]:8.4f}" for name in sorted(values))))


@dataclass(frozen=True)
class Bench:
    """What the runs share."""

    pairs: Path
    base: Path
    reward: Path
    preset: AlignConfig

    def run(
        self, config: AlignConfig, reward: CompositeReward, guard: type[Guard], **clock: float
    ) -> tuple[Aligned, Guard]:
        """Align from the base; held-out faces are drawn with the preset's sampler whatever the rollouts use."""
        pipeline = PrefRestorePipeline.from_pretrained(self.base)
        pairs = load_pairs(self.pairs, "train")
        pools = draw_pools(pairs, config.pool, config.guard.faces, config.caption_share, config.seed)
        add_roles(pipeline, config.lora, config.seed)

        def restorer(pool: FacePool, own: AlignConfig) -> Restorer:
            return Restorer(pipeline, pool, ConditionCache(pipeline, pool), solver(own), config.batch_size)

        watching = guard(restorer(pools[1], self.preset), reward, config.guard, config.seed)
        if isinstance(watching, Clocked):
            watching.begin(**clock)
        with tempfile.TemporaryDirectory() as name:
            checkpoints = Checkpoints("align", config, {"base": self.base}, Path(name))
            around = Surroundings(reward, watching, LiveView(Path(name), pools[1]), checkpoints)
            return align(restorer(pools[0], config), around, config), watching


def changed(preset: AlignConfig, **values: Any) -> AlignConfig:
    """Return the preset with other values."""
    return AlignConfig.model_validate({**preset.model_dump(), "checkpoint_every": ENDLESS, "workers": 1, **values})


def race(bench: Bench, budget: float, looks: int) -> dict[str, list[Point]]:
    """Run both for a budget, and print when ours reaches the published settings' final score."""
    curves = {}
    for name, values in (("published", PUBLISHED), ("ours", {})):
        print(f"{name}: {budget:.0f} processor seconds")
        with load_reward(bench.reward, 1, judge="validation") as reward:
            config = changed(bench.preset, epochs=ENDLESS, **values)
            _, guard = bench.run(config, reward, Clocked, budget=budget, looks=looks)
        curves[name] = guard.points if isinstance(guard, Clocked) else []
    final = curves["published"][-1]
    goal = final.values["reward_total"]
    gain = goal - curves["published"][0].values["reward_total"]
    reached = next((point for point in curves["ours"] if point.values["reward_total"] >= goal), None)
    print(f"published settings: reward {goal:.4f} ({gain:+.4f}) after {final.seconds:.0f} s")
    if reached is None:
        print("ours does not reach it: NOT MET")
    else:
        share = reached.seconds / final.seconds
        print(f"ours reaches it after {reached.seconds:.0f} s, {share:.3f} of that time: "
              f"{'met' if share <= FRACTION else 'NOT MET'} (goal {FRACTION:g})")  # fmt: skip
    return curves


def gamed(bench: Bench) -> dict[str, object]:
    """Pay for sharpness alone; print what the guard sees and does."""
    print("paid for sharpness alone; the guard is the preset's")
    with load_reward(bench.reward, 1, judge="validation") as whole:
        reward = CompositeReward((SharpnessReward(),), {"sharpness": Part(1.0, 0.0, 1.0)}, whole.reader, whole.judge)
        found, _ = bench.run(changed(bench.preset, local_share=0.0), reward, Guard)
    print(f"  {told_values(0, found.watch.base)}")
    for row in found.history:
        values = {key.removeprefix("held_out_"): value for key, value in row.items() if key.startswith("held_out_")}
        if values:
            print(f"  {told_values(int(row['step']), values)}")
    print(f"stopped: {found.watch.stopped or 'NO'}; kept: epoch {found.watch.best_epoch}")
    return {"history": found.history, "watch": found.watch.state()}


def draw(curves: Mapping[str, list[Point]], path: Path) -> None:
    """Draw score against time."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(
            [point.seconds for point in points], [point.values["reward_total"] for point in points], "o-", label=name
        )
    axes.set_xlabel("processor seconds")
    axes.set_ylabel("reward_total on held-out faces")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["race", "gamed"], default=["race", "gamed"])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="with pairs, base and reward")
    parser.add_argument("--preset", type=Path, default=Path("presets/tiny.yaml"))
    parser.add_argument("--budget", type=float, default=1500, help="processor seconds of each run of the race")
    parser.add_argument("--looks", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/alignment.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = configfile.load_section(options.preset, "align", AlignConfig)
    bench = Bench(*(options.artifacts / name for name in ("pairs", "base", "reward")), preset)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {}
    if "gamed" in options.what:
        result["gamed"] = gamed(bench)
    if "race" in options.what:
        curves = race(bench, options.budget, options.looks)
        draw(curves, options.json.with_suffix(".png"))
        result["race"] = {name: [vars(point) for point in points] for name, points in curves.items()}
    artifacts.write_json(options.json, result)


if __name__ == "__main__":
    plainly.run(main)
