"""Recipes: published ways of degrading faces, read from ``recipes.yaml``, and the drawing of records from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import field_validator

from prefrestore.data.operations import DegradationRecord, Frozen, Severity
from prefrestore.data.ranges import Draw, Extent, Range, merge_bounds
from prefrestore.data.steps import AnyStep
from prefrestore.errors import UserError
from prefrestore.runtime import seeding


class Recipe(Frozen):
    """A published way of degrading faces; with ``severities`` each image's severity is one of them, drawn."""

    name: str
    source: str
    rounding: Literal["truncate", "nearest"]
    steps: tuple[AnyStep, ...]
    severity: Severity = "any"
    severities: tuple[Severity, ...] = ()

    @field_validator("steps")
    @classmethod
    def _one_restore(cls, steps: tuple[AnyStep, ...]) -> tuple[AnyStep, ...]:
        if sum(step.op == "restore" for step in steps) != 1:
            raise ValueError("a recipe restores the image size exactly once")
        return steps

    def bounds(self, shape: tuple[int, int], severity: Severity | None = None) -> dict[str, Range]:
        """Return the range of every number that may be drawn for images [height, width], by ``operation.parameter``."""
        extent = Extent(*shape, severity or self.severity)
        return merge_bounds(step.bounds(extent) for step in self.steps)


@cache
def recipes() -> Mapping[str, Recipe]:
    """Return all recipes by name."""
    text = files("prefrestore.data").joinpath("recipes.yaml").read_text(encoding="utf-8")
    return {name: Recipe(name=name, **fields) for name, fields in yaml.safe_load(text).items()}


def recipe_named(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        UserError: there is none of that name.
    """
    if name not in recipes():
        raise UserError(f"recipe {name!r} is unknown: choose one of {', '.join(recipes())}")
    return recipes()[name]


def draw_record(
    recipe: Recipe, shape: int | tuple[int, int], seed: int, sample_id: str, severity: Severity | None = None
) -> DegradationRecord:
    """Draw what happens to one image: a function of its arguments alone, not of order or worker.

    Args:
        recipe: ranges and steps.
        shape: height and width of the image, or the side of a square one, pixels.
        seed: seed of the data set.
        sample_id: name of the sample, unique in the data set.
        severity: third of every range to draw from; None: the recipe's own.
    """
    chosen = severity or _drawn_severity(recipe, seed, sample_id)
    height, width = (shape, shape) if isinstance(shape, int) else shape
    draw = Draw(height, width, chosen, seeding.rng("degrade", seed, sample_id))
    operations = tuple(operation for step in recipe.steps for operation in step.operations(draw))
    return DegradationRecord(
        recipe=recipe.name,
        severity=chosen,
        height=height,
        width=width,
        operations=operations,
        rounding=recipe.rounding,
    )


def _drawn_severity(recipe: Recipe, seed: int, sample_id: str) -> Severity:
    if not recipe.severities:
        return recipe.severity
    return recipe.severities[int(seeding.rng("severity", seed, sample_id).integers(len(recipe.severities)))]
