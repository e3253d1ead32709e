"""Stage evaluate: every method on the frozen faces -> metrics (JSON, Parquet) and the report."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import EvaluateConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.data.tables import COUNTS
from prefrestore.evaluation.assessment import assess, write_metrics
from prefrestore.evaluation.columns import Sampling, all_columns
from prefrestore.evaluation.report import REPORT, Origin, Source, render
from prefrestore.rewards.composite import load_reward


def run(  # noqa: PLR0913 (the stage's inputs and outputs)
    config: EvaluateConfig,
    *,
    pairs: Path,
    baseline: Path,
    base: Path,
    policy: Path,
    reward: Path,
    champion: Path,
    metrics: Path,
    report: Path,
) -> None:
    """Draw, measure, compare and report."""
    faces = load_pairs(pairs, "eval")
    sampling = Sampling(config.samples, config.sampler_steps, config.batch_size, config.seed)
    columns = all_columns(faces, sampling, baseline=baseline, base=base, policy=policy, champion=champion)
    with load_reward(reward, config.workers, judge="test") as scorer:
        found = assess(columns, faces, scorer, config)
    write_metrics(found, metrics)

    inputs = {"pairs": pairs, "baseline": baseline, "base": base, "policy": policy, "reward": reward}
    sources = [Source(name, folder) for name, folder in {**inputs, "champion": champion}.items()]
    origin = Origin(sources, artifacts.read_json(pairs / COUNTS))
    (report / REPORT).write_text(render(found, origin, config.faces_shown), encoding="utf-8")
