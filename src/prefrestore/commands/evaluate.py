"""``prefrestore evaluate``: measure a model on data of one's own, outside the graph."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import click

from prefrestore import artifacts, config, configfile
from prefrestore.errors import UserError
from prefrestore.stage import cost_of_process

FOLDER = click.Path(path_type=Path)
REGISTERED = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>\w+)|/(?P<number>\d+))")


@click.command()
@click.option("--model", required=True, help="folder with base/, policy/ and reward/, or models:/NAME@ALIAS")
@click.option("--data", type=FOLDER, required=True, help="artifact pairs, photographs, or a folder with lq/ and hq/")
@click.option("--out", type=FOLDER, default=Path("evaluation"), show_default=True, help="folder to write")
@click.option("--recipe", help="degradation of photographs; that of the configuration by default")
@click.option("--config", "file", type=FOLDER, default=Path("params.yaml"), help="configuration")
def command(model: str, data: Path, out: Path, recipe: str | None, file: Path) -> None:
    """Measure a model on DATA; write metrics and report to OUT."""
    whole = configfile.load(file)
    folder = model_folder(model, whole.fetch_champion.registry, ("base", "policy", "reward"))
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


def model_folder(model: str, registry: str, parts: Sequence[str]) -> Path:
    """Return the folder of a model that is named by path or by its address in the registry.

    Raises:
        UserError: there is none, or it lacks one of the parts.
    """
    folder = _locate(model, registry)
    for name in parts:
        if not (folder / name).is_dir():
            raise UserError(f"--model: {folder} has no folder {name}: give a release, or the folder artifacts")
    return folder


def _locate(model: str, registry: str) -> Path:
    if not model.startswith("models:"):
        return Path(model)
    found = REGISTERED.fullmatch(model)
    if found is None:
        raise UserError(f"--model: {model} is no registry address: write models:/NAME@ALIAS or models:/NAME/VERSION")
    from prefrestore.registry.versions import Registry

    versions = Registry(registry)
    if found["number"]:
        return versions.get(found["name"], int(found["number"])).folder
    version = versions.aliased(found["name"], found["alias"])
    if version is None:
        raise UserError(f"--model: no version of {found['name']} is called {found['alias']} in {registry}")
    return version.folder


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
    with load_reward(model / "reward", section.workers) as reward:
        found = assess(columns, pairs, reward, section, lpips)
    write_metrics(found, target)
    sources = [
        Source(path.name, path) for path in (model / "base", model / "policy", model / "reward", baseline) if path
    ]
    if section.lpips_weights:
        sources.append(Source("LPIPS weights", Path(section.lpips_weights)))
    origin = Origin(sources, counts, {"LQ and HQ pictures": digest_of(pairs)})
    (target / REPORT).write_text(render(found, origin, section.faces_shown), encoding="utf-8")
