"""The pages' frame, and what is known of a run only after its report: the gate's verdict and what the run cost.

The report is an output of the graph, so it holds nothing volatile: equal work gives equal bytes. Time and memory lie
in the run records beside the outputs; here both become one page for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from prefrestore import artifacts

VERDICT_MARK, COST_MARK = "<!-- verdict -->", "<!-- cost -->"


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds on the clock, of processors and of accelerators, and its peak memory in MiB."""

    step: str
    wall: float
    processor: float
    accelerator: float
    memory: float


def environment() -> jinja2.Environment:
    """Return the environment of all templates here; whatever is put in is escaped."""
    loader = jinja2.PackageLoader("prefrestore.evaluation")
    found = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    found.filters["duration"] = duration
    return found


def read_costs(records: Iterable[Path]) -> list[Cost]:
    """Return the costs that run records hold; a record that is not there is left out."""
    rows = [artifacts.read_json(path) for path in records if path.is_file()]
    return [cost_of(row["stage"], row) for row in rows]


def cost_of(step: str, record: Mapping[str, Any]) -> Cost:
    """Return the cost of a step from its run record; older records know no accelerators."""
    used = record.get("accelerator_seconds", 0.0)
    return Cost(step, record["wall_seconds"], record["processor_seconds"], used, record["peak_memory_mib"])


def complete(html: str, costs: Sequence[Cost], verdict: Mapping[str, Any] | None = None) -> str:
    """Return a report with the gate's verdict, if there is one, and the cost of the run put in their places."""
    templates = environment()
    if verdict is not None:
        html = html.replace(VERDICT_MARK, templates.get_template("verdict.html.j2").render(verdict=verdict))
    return html.replace(COST_MARK, templates.get_template("cost.html.j2").render(costs=costs))


def duration(seconds: float) -> str:
    """Return a time as people say it: ``48 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
