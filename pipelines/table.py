"""The table of components: ``python -m pipelines.table > components/README.md``; a test keeps the file in step."""

from __future__ import annotations

from components import factory
from pipelines import resources
from prefrestore.stage import STAGES

HEAD = """# Components

Written by `python -m pipelines.table` from the stage table. Do not edit.

A stage becomes a container component (`factory.py`): its section of the configuration as JSON, a port per artifact,
the version of outside data as a string that is part of the cache's key. `step.py` runs inside the container, whose
image needs no kfp. Beside the stages: `preflight` (checks every choice before a GPU is asked for), `fetch` (artifacts
of an earlier run or of a release), `merge` (shards of pairs), `notify` (a webhook, at the end).

| component | reads | writes | image | device | asks for | tries |
|---|---|---|---|---|---|---|
"""


def render() -> str:
    """Return the page."""
    rows = []
    for name, row in STAGES.items():
        described = factory.of_stage(row)
        asked = resources.STEPS[name]
        ports = [
            " ".join(f"`{port}`: {kind.__name__}" for port, kind in side.items()) or "-"
            for side in (described.inputs, described.outputs)
        ]
        need = f"{asked.cpu} CPU, {asked.memory}, {asked.hours} h"
        rows.append(
            f"| `{name}` | {ports[0]} | {ports[1]} | {asked.image} | {row.device} | {need} | {1 + asked.retries} |"
        )
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(render(), end="")
