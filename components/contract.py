"""What a container and the launcher of Kubeflow Pipelines say to each other: the executor's input and output.

The launcher puts the input as JSON in place of ``{{$}}``; the output goes to the file that the input names. That is how
a container without kfp gives artifacts their metadata, which the UI shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.stage import Stage

MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "oci://": "/oci/", "s3://": "/s3/"}
"""Where the launcher keeps the files of each kind of address."""


@dataclass
class Exchange:
    """One task's executor input, and the output in the making."""

    task: Mapping[str, Any]
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Exchange:
        """Read an executor input.

        Raises:
            UserError: it is none.
        """
        try:
            task = json.loads(text)
            task["outputs"]["outputFile"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"--executor-input: is no executor input ({error}): pass {{{{$}}}}") from None
        return cls(task)

    def parameter(self, name: str) -> str:
        """Return an input parameter as text, however the launcher spelt it; empty if it was left out."""
        value = self.task.get("inputs", {}).get("parameterValues", {}).get(name, "")
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return value if isinstance(value, str) else json.dumps(value)

    def inputs(self, name: str) -> list[Path]:
        """Return the folders of an input artifact, or of a list of them; none if it was left out."""
        rows = self.task.get("inputs", {}).get("artifacts", {}).get(name, {}).get("artifacts", [])
        return [local_path(row) for row in rows]

    def output(self, name: str) -> Path:
        """Return where an output artifact goes."""
        return local_path(self.task["outputs"]["artifacts"][name]["artifacts"][0])

    def has_output(self, name: str) -> bool:
        """Say whether the task declares this output artifact."""
        return name in self.task["outputs"].get("artifacts", {})

    def write(self) -> None:
        """Write the executor output: metadata of artifacts and values of parameters."""
        described = {}
        for name, metadata in self.metadata.items():
            row = dict(self.task["outputs"]["artifacts"][name]["artifacts"][0])
            described[name] = {"artifacts": [{**row, "metadata": {**row.get("metadata", {}), **metadata}}]}
        for name, value in self.values.items():
            self._write_value(name, value)
        output = Path(self.task["outputs"]["outputFile"])
        output.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(output, {"artifacts": described, "parameterValues": self.values})

    def _write_value(self, name: str, value: Any) -> None:
        path = Path(self.task["outputs"]["parameters"][name]["outputFile"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def local_path(row: Mapping[str, Any]) -> Path:
    """Return where an artifact of the executor input lies in this container."""
    uri = str(row.get("customPath") or row["uri"])
    for scheme, mount in MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri)


def stage_command(row: Stage, section: str, paths: Mapping[str, Path]) -> list[str]:
    """Return the arguments of ``python -m`` that run a stage."""
    ports = [f"--{name}={path}" for name, path in paths.items()]
    return ["prefrestore", "stage", row.name, f"--section={section}", *ports]


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what a Metrics artifact can show: finite numbers, truth as 1 and 0."""
    numbers = {key: float(value) for key, value in values.items() if isinstance(value, bool | int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
