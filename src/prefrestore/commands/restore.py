"""``prefrestore restore``: photographs in, the same with their faces restored out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.data.tables import Rejection
    from prefrestore.registry.loader import Located
    from prefrestore.serving.photo_files import Job
    from prefrestore.serving.photograph import Restored, Wishes

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("sources", metavar="PHOTO...", type=PATH, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=PATH,
    required=True,
    help="a file (its name says PNG, JPEG, WebP or TIFF) or a folder",
)
@click.option("--model", help="models:/NAME@ALIAS, a release in S3, or a folder; by default the weights that ship")
@click.option("--registry", default="sqlite:///mlflow.db", show_default=True, help="of the model's address")
@click.option("--text", default="", help="what is known of the person, such as 'a woman with glasses'")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="drawn of each face and compared [default: 8 for --fidelity and --uncertainty]",
)
@click.option(
    "--fidelity",
    type=click.FloatRange(0, 1),
    help="0: one sample, sharp; 1: the mean of all, nearest to the truth [default: the model's own restoration]",
)
@click.option("--uncertainty", is_flag=True, help="write NAME.uncertainty.png too: red where samples disagree")
@click.option("--face-only", is_flag=True, help="write each restored face by itself, at the model's size")
@click.option("--aligned", is_flag=True, help="the pictures are square, aligned faces: nothing is looked for")
@click.option("--every-face", is_flag=True, help="restore faces too that are sharp, very small or turned away")
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(1, 8), help="enlarge the photograph (Lanczos)"
)
@click.option("--device", default="cpu", show_default=True, help="such as cuda")
@click.option(
    "--steps", type=click.IntRange(min=1), help="sampling steps; by default the model's own, at least 4 for samples"
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--force", is_flag=True, help="overwrite what stands in OUT")
def command(  # noqa: PLR0913  one argument per option
    sources: tuple[Path, ...],
    output: Path,
    model: str | None,
    registry: str,
    text: str,
    samples: int | None,
    fidelity: float | None,
    uncertainty: bool,
    face_only: bool,
    aligned: bool,
    every_face: bool,
    scale: float,
    device: str,
    steps: int | None,
    seed: int,
    force: bool,
) -> None:
    """Restore the faces of photographs: files, folders, or both; what surrounds the faces stays as it is.

    Without --force nothing is overwritten; equal input gives equal bytes.
    """
    from prefrestore.evaluation.restorer import Drawing
    from prefrestore.registry.loader import locate, resolve
    from prefrestore.registry.shipped import shipped_address
    from prefrestore.serving.photo_files import jobs_of
    from prefrestore.serving.photograph import Wishes, number_of_samples

    number = number_of_samples(samples, fidelity, uncertainty=uncertainty)
    if scale > 1 and (aligned or face_only):
        raise UserError("--scale: --aligned and --face-only write faces at the model's size: leave one of them out")
    if aligned and every_face:
        raise UserError(
            "--every-face: with --aligned nothing is looked for and all are restored: leave one of them out"
        )
    jobs = jobs_of(sources, output, force=force, uncertainty=uncertainty, face_only=face_only)
    located = locate(resolve(model or shipped_address(), registry))
    wishes = Wishes(Drawing(number, steps, seed, text), fidelity, scale, aligned, every_face)
    rejected = list(_restore(jobs, located, device, wishes, uncertainty=uncertainty, face_only=face_only))
    for row in rejected:
        click.echo(f"set aside: {row.name}: {row.reason}", err=True)
    if len(rejected) == len(jobs):
        raise UserError(f"{rejected[0].name}: {rejected[0].reason}: no photograph could be restored")
    click.echo(f"{len(jobs) - len(rejected)} written to {output}, {len(rejected)} set aside")


def _restore(  # noqa: PLR0913  what to do, with what, and how
    jobs: Sequence[Job],
    model: Located,
    device: str,
    wishes: Wishes,
    *,
    uncertainty: bool,
    face_only: bool,
) -> Iterator[Rejection]:
    """Write the restoration of every job; yield what was set aside."""
    from prefrestore.data.images import UnreadableError
    from prefrestore.data.tables import Rejection
    from prefrestore.evaluation.restorer import load_calibration
    from prefrestore.registry.loader import load
    from prefrestore.runtime.progress import track
    from prefrestore.serving.photo_files import read, write
    from prefrestore.serving.photograph import restore_photograph, usable

    pipeline, calibration = load(model).to(usable(device)), load_calibration(model.folder)
    if uncertainty and calibration is None:
        click.echo("the model has no metrics/uncertainty.json: red shows the samples' spread, not an error", err=True)
    for job in track(jobs, "restore", total=len(jobs), unit="photograph"):
        try:
            restored = restore_photograph(pipeline, read(job), wishes, calibration)
        except UnreadableError as error:
            yield Rejection(job.name, str(error))
            continue
        _tell(job.name, restored)
        if not any(face.restored is not None for face in restored.faces) and (face_only or not restored.faces):
            yield Rejection(job.name, "no face was restored" if restored.faces else "no face found")
            continue
        write(job, restored, uncertainty=uncertainty, face_only=face_only)


def _tell(name: str, restored: Restored) -> None:
    """Say which faces were left alone, and why."""
    for number, face in enumerate(restored.faces, 1):
        if face.left_alone:
            left, top = face.square.min(0).round().astype(int)
            click.echo(f"{name}: face {number} at {left},{top} left alone: {face.left_alone}", err=True)
