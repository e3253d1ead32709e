"""Degrading image files: one, or all of a folder, each with the record of what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefrestore.data.candidates import Candidate, printable
from prefrestore.data.degradation import degrade
from prefrestore.data.images import UnreadableError, decode, encode_png, read_file
from prefrestore.data.operations import DegradationRecord, Severity
from prefrestore.data.recipes import Recipe, draw_record
from prefrestore.data.sources import folder_candidates
from prefrestore.data.tables import Rejection
from prefrestore.errors import UserError


@dataclass(frozen=True)
class Treatment:
    """How files are degraded."""

    recipe: Recipe
    seed: int
    severity: Severity | None  # None: the recipe's own


@dataclass(frozen=True)
class Job:
    """An image file and where its LQ version goes."""

    candidate: Candidate
    target: Path


def jobs_of(source: Path, target: Path, *, force: bool) -> list[Job]:
    """Return what is to be done for a file or a folder; nothing is written yet.

    Raises:
        UserError: no such source, an output that exists already (unless ``force``), or a target that is no PNG.
    """
    if source.is_dir():
        candidates = folder_candidates(source, by_name=False)
        jobs = [Job(row, target / name) for row, name in zip(candidates, _output_names(candidates), strict=True)]
    elif source.exists():
        where = target / f"{source.stem}.png" if target.is_dir() else target
        jobs = [Job(Candidate(source.name, printable(source.name), source), where)]
    else:
        raise UserError(f"{source}: no such file or folder: name an image or a folder of images")
    wrong = next((job.target for job in jobs if job.target.suffix.lower() != ".png"), None)
    if wrong is not None:
        raise UserError(f"{wrong}: images are written as PNG: give a name that ends in .png, or a folder")
    existing = next((job.target for job in jobs if job.target.exists()), None)
    if existing is not None and not force:
        raise UserError(f"{existing} exists already: choose another place, or say --force")
    return jobs


def _output_names(candidates: Sequence[Candidate]) -> list[str]:
    """Return the sources' names as PNG; where two would fall together, the old suffix stays in the name."""
    plain = [Path(candidate.name).with_suffix(".png").as_posix() for candidate in candidates]
    counts = Counter(plain)
    return [name if counts[name] == 1 else f"{row.name}.png" for name, row in zip(plain, candidates, strict=True)]


def degrade_files(jobs: Sequence[Job], how: Treatment) -> Iterator[DegradationRecord | Rejection]:
    """Write the LQ image of every job, with its record beside it; yield the record, or why there is none."""
    for job in jobs:
        try:
            hq = decode(read_file(job.candidate.payload, job.candidate.problem))
        except UnreadableError as error:
            yield Rejection(job.candidate.name, str(error))
            continue
        record = draw_record(how.recipe, hq.shape[:2], how.seed, job.candidate.name, how.severity)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.write_bytes(encode_png(degrade(hq, record)))
        job.target.with_suffix(".json").write_text(record.to_json() + "\n", encoding="utf-8")
        yield record
