"""Stage ``ingest``: take faces from a source."""

from __future__ import annotations

from pathlib import Path

from prefrestore.config import IngestConfig
from prefrestore.data.tables import FACE_SCHEMA, ShardWriter, write_set_aside
from prefrestore.faces.intake import Intake


def run(config: IngestConfig, *, faces: Path) -> None:
    """Write the faces of a source as Parquet shards, with what was set aside and why."""
    intake = Intake(config)
    writer = ShardWriter(faces, "faces", FACE_SCHEMA, config.shard_rows)
    for face in intake.faces():
        writer.add(face)
    writer.close()
    write_set_aside(faces, intake.rejected, intake.taken)
