"""Stage evaluate: every method on the frozen faces -> metrics (JSON, Parquet) and the report."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import EvaluateConfig
from prefrestore.data.pairs import describe_pairs, load_pairs
from prefrestore.data.tables import COUNTS
from prefrestore.evaluation.assessment import assess, write_metrics, write_reward_curve
from prefrestore.evaluation.columns import Sampling, all_columns
from prefrestore.evaluation.cost import COST, measure_cost
from prefrestore.evaluation.report import REPORT, Origin, Source, render
from prefrestore.evaluation.summary import plain
from prefrestore.models.lpips import load_lpips
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
    lpips = load_lpips(Path(config.lpips_weights)) if config.lpips_weights else None
    faces = load_pairs(pairs, "eval")
    sampling = Sampling(config.samples, config.sampler_steps, config.batch_size, config.seed)
    columns = all_columns(faces, sampling, baseline=baseline, base=base, policy=policy, champion=champion)
    with load_reward(reward, config.workers, judge="test") as scorer:
        found = assess(columns, faces, scorer, config, lpips)
    write_metrics(found, metrics)
    artifacts.write_json(metrics / COST, plain(measure_cost(base, policy, config.sampler_steps)))
    artifacts.write_json(metrics / "data.json", describe_pairs(pairs))
    write_reward_curve(policy, metrics)

    inputs = {"pairs": pairs, "baseline": baseline, "base": base, "policy": policy, "reward": reward}
    sources = [Source(name, folder) for name, folder in {**inputs, "champion": champion}.items()]
    if config.lpips_weights:
        sources.append(Source("LPIPS weights", Path(config.lpips_weights)))
    origin = Origin(sources, artifacts.read_json(pairs / COUNTS))
    (report / REPORT).write_text(render(found, origin, config.faces_shown), encoding="utf-8")
