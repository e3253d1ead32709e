"""The model card of a release, in the hub's format: metadata as YAML, then text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefrestore import artifacts
from prefrestore.registry.origin import Origin

TEMPLATE = Path(__file__).with_name("card.md.j2")
CARD = "README.md"
TASK = "image-to-image"
SHOWN = ("lq", "base", "policy", "champion")


def render(origin: Origin, metrics: Path, verdict: Path) -> str:
    """Return the card of a release.

    Args:
        origin: where it comes from.
        metrics: artifact ``metrics``.
        verdict: artifact ``verdict``.
    """
    measured = artifacts.read_json(metrics / "metrics.json")["columns"]
    table = artifacts.read_json(metrics / "metric_table.json")
    judged = artifacts.read_json(verdict / "verdict.json")
    card = ModelCard.from_template(
        _metadata(origin, measured["policy"], table["metrics"]),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        origin=origin,
        verdict=judged,
        columns=[table["columns"].get(name, name) for name in SHOWN if name in measured],
        rows=list(metric_rows(measured, table["metrics"])),
        cost=_optional(metrics / "cost.json"),
        uncertainty=_optional(metrics / "uncertainty.json").get("policy"),
        statements=_optional(metrics / "comparisons.json").get("statements", {}),
    )
    return f"{str(card).rstrip()}\n"


def _metadata(origin: Origin, policy: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelCardData:
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Blind face restoration",
            dataset_type="pairs",
            dataset_name=f"frozen evaluation pairs, recipe {origin.data['config'].get('eval_recipe', 'unknown')}",
            dataset_revision=origin.data["digest"][:12],
            metric_type=name,
            metric_name=metrics[name]["label"],
            metric_value=estimate["mean"],
        )
        for name, estimate in policy.items()
        if estimate["mean"] is not None and name in metrics
    ]
    return ModelCardData(
        model_name=origin.model,
        license=origin.licence,
        library_name="prefrestore",
        pipeline_tag=TASK,
        tags=["face-restoration", "image-restoration", "diffusers", "lora"],
        eval_results=results,
    )


def metric_rows(measured: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row per metric: its name, and mean and interval of each column."""
    shown = [measured[name] for name in SHOWN if name in measured]
    for name, row in metrics.items():
        if name in measured["policy"]:
            arrow = "↑" if row["direction"] == "higher" else "↓"
            unit = f" [{row['unit']}]" if row["unit"] else ""
            yield [f"{row['label']}{unit} {arrow}", *(_cell(column.get(name), row["digits"]) for column in shown)]


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None or estimate["mean"] is None:
        return "–"
    mean = f"{estimate['mean']:.{digits}f}"
    if estimate["low"] is None or estimate["high"] is None:
        return mean
    return f"{mean} ({estimate['low']:.{digits}f} to {estimate['high']:.{digits}f})"


def _optional(path: Path) -> Any:
    """Return what an evaluation need not have written."""
    return artifacts.read_json(path) if path.is_file() else {}
