"""``prefrestore evaluate``: measure a model on data of one's own, outside the graph."""

from __future__ import annotations

import time
from pathlib import Path

import click

from prefrestore import artifacts, config, configfile
from prefrestore.errors import UserError
from prefrestore.stage import cost_of_process

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--model", required=True, help="models:/NAME@ALIAS, a release in S3, or a folder")
@click.option("--data", type=FOLDER, required=True, help="artifact pairs, photographs, or a folder with lq/ and hq/")
@click.option("--out", type=FOLDER, default=Path("evaluation"), show_default=True, help="folder to write")
@click.option("--recipe", help="degradation of photographs; that of the configuration by default")
@click.option("--config", "file", type=FOLDER, default=Path("params.yaml"), help="configuration")
def command(model: str, data: Path, out: Path, recipe: str | None, file: Path) -> None:
    """Measure a model on DATA; write metrics and report to OUT."""
    from prefrestore.registry.loader import locate, resolve

    whole = configfile.load(file)
    folder = locate(resolve(model, whole.publish.registry)).folder
    if not (folder / "reward").is_dir():
        raise UserError(f"--model: {folder} has no folder reward: give a release, or the folder artifacts")
    if not data.is_dir():
        raise UserError(f"--data: {data} is no folder: give an artifact pairs, or a folder of photographs")
    started = time.monotonic()
    with artifacts.replacing(out) as target:
        _evaluate(whole, folder, data, recipe or whole.degrade.eval_recipe, target)
        _add_cost(target / "report.html", time.monotonic() - started)
    click.echo(f"{out / 'report.html'}")


def _add_cost(report: Path, seconds: float) -> None:
    from prefrestore.evaluation.page import complete, cost_of

    cost = cost_of("evaluate", cost_of_process(seconds))
    report.write_text(complete(report.read_text(encoding="utf-8"), [cost]), encoding="utf-8")


def _evaluate(whole: config.Config, model: Path, data: Path, recipe: str, target: Path) -> None:
    from prefrestore.data.recipes import recipe_named
    from prefrestore.evaluation.assessment import assess, write_metrics
    from prefrestore.evaluation.columns import Sampling, all_columns
    from prefrestore.evaluation.outside import Freezing, digest_of, frozen_pairs
    from prefrestore.evaluation.report import REPORT, Origin, Source, render
    from prefrestore.models.lpips import load_lpips
    from prefrestore.models.pipeline import PrefRestorePipeline
    from prefrestore.rewards.composite import load_reward

    section = whole.evaluate
    lpips = load_lpips(Path(section.lpips_weights)) if section.lpips_weights else None
    size = PrefRestorePipeline.from_pretrained(model / "base").image_size
    pairs, counts = frozen_pairs(data, Freezing(size, recipe_named(recipe), whole.degrade.seed, section.workers))
    sampling = Sampling(section.samples, section.sampler_steps, section.batch_size, section.seed)
    baseline = model / "baseline" if (model / "baseline").is_dir() else None
    columns = all_columns(
        pairs, sampling, base=model / "base", policy=model / "policy", baseline=baseline, champion=None
    )
    with load_reward(model / "reward", section.workers, judge="test") as reward:
        found = assess(columns, pairs, reward, section, lpips)
    write_metrics(found, target)
    sources = [
        Source(path.name, path) for path in (model / "base", model / "policy", model / "reward", baseline) if path
    ]
    if section.lpips_weights:
        sources.append(Source("LPIPS weights", Path(section.lpips_weights)))
    origin = Origin(sources, counts, {"LQ and HQ pictures": digest_of(pairs)})
    (target / REPORT).write_text(render(found, origin, section.faces_shown), encoding="utf-8")
