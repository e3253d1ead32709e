"""Stage ``ingest``: take faces from a source."""

from __future__ import annotations

from pathlib import Path

from prefrestore.config import IngestConfig
from prefrestore.data.tables import FACE_SCHEMA, write_set_aside, write_shards
from prefrestore.faces.intake import Intake


def run(config: IngestConfig, *, faces: Path) -> None:
    """Write the faces of a source as Parquet shards, with what was set aside and why."""
    intake = Intake(config)
    write_shards(faces, "faces", FACE_SCHEMA, intake.faces(), config.shard_rows)
    write_set_aside(faces, intake.rejected, intake.taken)
