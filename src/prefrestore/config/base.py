"""What every section is made of: its base class and the kinds of numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Circumstance:
    """Marks a field that says where or by how many, not what is computed: it leaves no trace in results."""


Workers = Annotated[int, Field(gt=0), Circumstance()]
Address = Annotated[str, Circumstance()]


class Section(BaseModel):
    """Base of every section: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide what comes out, as JSON values: all but circumstances."""
        fields = type(self).model_fields.items()
        marked = {name for name, field in fields if any(isinstance(mark, Circumstance) for mark in field.metadata)}
        return self.model_dump(mode="json", exclude=marked)
