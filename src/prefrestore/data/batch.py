"""Degrading image files: one, or all of a folder, each with the record of what was done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prefrestore.data.candidates import Candidate, printable
from prefrestore.data.degradation import degrade
from prefrestore.data.images import UnreadableError, decode, encode_png, read_file
from prefrestore.data.operations import DegradationRecord, Severity
from prefrestore.data.recipes import Recipe, draw_record
from prefrestore.data.sheet import contact_sheet
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

    @property
    def record(self) -> Path:
        """Return where the record goes."""
        return self.target.with_suffix(".json")


def jobs_of(source: Path, target: Path, *, force: bool) -> list[Job]:
    """Return what is to be done for a file or a folder; nothing is written yet.

    Raises:
        UserError: no such source, an output that exists already (unless ``force``), a target that is no PNG, that is
            the source itself, or that lies in the source's folder.
    """
    if source.is_dir():
        if target.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{target} lies in {source}: results would be taken for images: choose a place outside")
        candidates = folder_candidates(source, by_name=False)
        jobs = [Job(row, target / name) for row, name in zip(candidates, _output_names(candidates), strict=True)]
    elif source.exists():
        where = target / f"{source.stem}.png" if target.is_dir() else target
        jobs = [Job(Candidate(source.name, printable(source.name), source), where)]
    else:
        raise UserError(f"{source}: no such file or folder: name an image or a folder of images")
    for job in jobs:
        check_target(job.target, job.candidate.payload, force=force)
        if job.record.exists() and not force:
            raise UserError(f"{job.record} exists already: choose another place, or say --force")
    return jobs


def check_target(target: Path, source: Path | bytes, *, force: bool) -> None:
    """Refuse to write what is no PNG, over the very source, or, unless ``force``, over anything."""
    if target.suffix.lower() != ".png":
        raise UserError(f"{target}: LQ images are written as PNG: give a name that ends in .png, or a folder")
    if isinstance(source, Path) and target.resolve() == source.resolve():
        raise UserError(f"{target} exists already and is the source itself: choose another place")
    if target.exists() and not force:
        raise UserError(f"{target} exists already: choose another place, or say --force")


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
        write_whole(job.target, encode_png(degrade(hq, record)))
        write_whole(job.record, (record.to_json() + "\n").encode())
        yield record


def draw_sheet(source: Path, target: Path, seed: int, *, force: bool) -> None:
    """Write the contact sheet of one image file.

    Raises:
        UserError: the image cannot be read, or :func:`check_target` refuses.
    """
    check_target(target, source, force=force)
    try:
        hq = decode(read_file(source))
    except UnreadableError as error:
        raise UserError(f"{source}: {error}: give one JPEG, PNG, WebP, TIFF or BMP file") from None
    write_whole(target, encode_png(contact_sheet(hq, seed)))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through a temporary sibling, so that a killed run leaves no half of it.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another place") from None
