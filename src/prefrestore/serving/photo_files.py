"""Photographs as files: which there are, where each goes, and writing it whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from itertools import chain, count
from pathlib import Path

from prefrestore.data.batch import write_whole
from prefrestore.data.candidates import Candidate, printable
from prefrestore.data.images import encode_png, read_file
from prefrestore.data.photographs import SUFFIXES, Photograph, check_suffix, encode_photograph, read_photograph
from prefrestore.data.sources import folder_candidates
from prefrestore.errors import UserError
from prefrestore.serving.photograph import Restored

FALLBACK = ".png"


@dataclass(frozen=True)
class Job:
    """A photograph and where its restoration goes."""

    candidate: Candidate
    target: Path

    @property
    def name(self) -> str:
        """The photograph's name, fit to be printed."""
        return self.candidate.name

    @property
    def uncertainty(self) -> Path:
        """Where the picture of uncertainty goes."""
        return self.target.with_name(f"{self.target.stem}.uncertainty.png")

    def face(self, number: int) -> Path:
        """Where a face by itself goes, from 1 on."""
        return self.target.with_name(f"{self.target.stem}.face{number}{self.target.suffix}")


def jobs_of(
    sources: Sequence[Path], output: Path, *, force: bool, uncertainty: bool, face_only: bool = False
) -> list[Job]:
    """Return what is to be done for files and folders; nothing is written yet.

    A single file goes to ``output`` if that has a suffix and is no folder; everything else goes into it as a folder,
    in the format it came in where that is one we write.

    Raises:
        UserError: no such source, an output that exists already (unless ``force``), that is a source itself, lies in a
            folder of sources, or is of no format we write.
    """
    candidates = [row for source in sources for row in _candidates(source, output)]
    single = len(sources) == 1 and sources[0].is_file() and not output.is_dir() and output.suffix
    if single:
        check_suffix(output)
        jobs = [Job(candidates[0], output)]
    else:
        names = _names(candidates)
        jobs = [Job(row, output / name) for row, name in zip(candidates, names, strict=True)]
    for job in jobs:
        payload = job.candidate.payload
        if isinstance(payload, Path) and job.target.resolve() == payload.resolve():
            raise UserError(f"{job.target}: is the photograph itself: choose another place")
        faces = job.target.parent.glob(f"{escape(job.target.stem)}.face*{job.target.suffix}")
        written = [*faces] if face_only else [job.target]
        for target in (*written, *([job.uncertainty] if uncertainty else [])):
            if target.exists() and not force:
                raise UserError(f"{target} exists already: choose another place, or say --force")
    return jobs


def _candidates(source: Path, output: Path) -> list[Candidate]:
    if source.is_dir():
        if output.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"{output} lies in {source}: results would be taken for photographs: choose a place outside"
            )
        return list(folder_candidates(source, by_name=False))
    if not source.exists():
        raise UserError(f"{source}: no such file or folder: name a photograph or a folder of them")
    return [Candidate(source.name, printable(source.name), source)]


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Return names for the results; where two would fall together they get numbers."""
    names: list[str] = []
    for row in candidates:
        place = Path(row.name)
        suffix = place.suffix if place.suffix.lower() in SUFFIXES else FALLBACK
        stem = place.with_suffix("").as_posix()
        choices = chain([f"{stem}{suffix}"], (f"{stem}-{number}{suffix}" for number in count(2)))
        names.append(next(name for name in choices if name not in names))
    return names


def read(job: Job) -> Photograph:
    """Read a job's photograph.

    Raises:
        UnreadableError: the reason, in few words.
    """
    return read_photograph(read_file(job.candidate.payload, job.candidate.problem))


def write(job: Job, restored: Restored, *, uncertainty: bool, face_only: bool) -> None:
    """Write the whole photograph, or each restored face by itself; and the picture of uncertainty.

    Raises:
        UserError: it cannot be written.
    """
    if face_only:
        faces = [face for face in restored.faces if face.restored is not None]
        for number, face in enumerate(faces, 1):
            assert face.restored is not None
            write_whole(job.face(number), encode_photograph(Photograph(face.restored), job.target.suffix))
    else:
        write_whole(job.target, encode_photograph(restored.photograph, job.target.suffix))
    if uncertainty and restored.uncertainty is not None:
        write_whole(job.uncertainty, encode_png(restored.uncertainty))
