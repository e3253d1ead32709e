"""What one installation sets: a variable ``PREFRESTORE_LOOP_NAME`` of the environment for each field."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

PREFIX = "PREFRESTORE_LOOP_"


@dataclass(frozen=True)
class Settings:
    """Settings of the loop.

    Attributes:
        store: vote store: a folder, or s3://BUCKET/PREFIX.
        minimum: new valid judgements that start an alignment.
        max_wait_hours: after this long fewer are enough, but at least one.
        cooldown_hours: between two alignments.
        per_day: most alignments in 24 hours.
        poll_seconds: between two looks at the store.
        run_poll_seconds: between two looks at a run.
        artifacts: folder or s3:// prefix of the run whose base is aligned.
        preset: size of everything.
        changes: values over the preset's, as JSON by section.
        registry: address of MLflow; empty: the preset's own.
        release_store: place of releases; empty: the preset's own.
        pipeline_version: version of the uploaded pipelines; empty: the newest.
        fresh_data: photographs on which the champion is measured; empty: drift is not looked at.
        retrain_cron: when everything is trained anew.
        drift_cron: when the champion is measured.
        deadline_hours: a run that takes longer gives an alert.
        approval_hours: a challenger nobody decides about for so long gives an alert.
    """

    store: str = "votes"
    minimum: int = 200
    max_wait_hours: float = 72.0
    cooldown_hours: float = 6.0
    per_day: int = 2
    poll_seconds: float = 60.0
    run_poll_seconds: float = 30.0
    artifacts: str = "artifacts"
    preset: str = "tiny"
    changes: str = "{}"
    registry: str = ""
    release_store: str = ""
    pipeline_version: str = ""
    fresh_data: str = ""
    retrain_cron: str = "0 3 * * *"
    drift_cron: str = "0 6 * * 1"
    deadline_hours: float = 24.0
    approval_hours: float = 168.0

    def places(self) -> dict[str, str]:
        """Return the pipeline's parameters that every run gets."""
        given = {"registry": self.registry, "release_store": self.release_store}
        return {name: value for name, value in given.items() if value}


@cache
def settings() -> Settings:
    """Return this installation's settings."""
    return parse(os.environ)


def parse(environment: Mapping[str, str]) -> Settings:
    """Return the settings that an environment holds.

    Raises:
        ValueError: a variable is unknown, or its value is no number where one is needed, or not positive.
    """
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in kinds:
            raise ValueError(f"{variable}: unknown: choose from {', '.join(kinds)}")
        values[name] = _number(variable, text, kinds[name]) if kinds[name] is not str else text
    return Settings(**values)


def _number(variable: str, text: str, kind: type) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = -1
    # not below zero, and no NaN
    if not number >= 0:
        raise ValueError(f"{variable}: {text!r} is no {'whole ' if kind is int else ''}number of at least 0")
    return number
