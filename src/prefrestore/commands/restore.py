"""``prefrestore restore``: aligned faces in, restored ones out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from prefrestore.data.batch import Job
    from prefrestore.data.tables import Rejection
    from prefrestore.evaluation.restorer import Drawing
    from prefrestore.registry.loader import Located

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=PATH)
@click.option("--model", required=True, help="models:/NAME@ALIAS, a release in S3, or a folder")
@click.option("--registry", default="sqlite:///mlflow.db", show_default=True, help="of the model's address")
@click.option("--samples", default=8, show_default=True, type=click.IntRange(min=2), help="to measure uncertainty from")
@click.option("--uncertainty", is_flag=True, help="write NAME.uncertainty.png too: red where samples disagree")
@click.option("--steps", type=click.IntRange(min=1), help="sampling steps; the model's own by default")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--force", is_flag=True, help="overwrite what stands in OUT")
def command(  # noqa: PLR0913  one argument per option
    source: Path,
    target: Path,
    model: str,
    registry: str,
    samples: int,
    uncertainty: bool,
    steps: int | None,
    seed: int,
    force: bool,
) -> None:
    """Restore the face IN, or all faces of the folder IN, into OUT (PNG).

    Faces must be square and aligned as the model was trained; they are resized to the model's own size.
    """
    from prefrestore.data.batch import jobs_of
    from prefrestore.evaluation.restorer import Drawing
    from prefrestore.registry.loader import locate, resolve

    located = locate(resolve(model, registry))
    jobs = jobs_of(source, target, force=force)
    rejected = list(_restore(jobs, located, Drawing(samples if uncertainty else 1, steps, seed)))
    for row in rejected:
        click.echo(f"set aside: {row.name}: {row.reason}", err=True)
    if len(rejected) == len(jobs):
        raise UserError(f"{source}: no face could be restored ({rejected[0].reason}): give square pictures of one face")
    click.echo(f"{len(jobs) - len(rejected)} written to {target}, {len(rejected)} set aside")


def _restore(jobs: Sequence[Job], model: Located, how: Drawing) -> Iterator[Rejection]:
    """Write the restoration of every job; yield what was set aside."""
    from prefrestore.data.images import UnreadableError, decode, encode_png, read_file
    from prefrestore.data.tables import Rejection
    from prefrestore.evaluation.restorer import draw_samples, load_calibration, uncertainty_picture
    from prefrestore.registry.loader import load
    from prefrestore.runtime.progress import track

    pipeline, calibration = load(model), load_calibration(model.folder)
    if how.samples > 1 and calibration is None:
        click.echo("the model has no metrics/uncertainty.json: red shows the samples' spread, not an error", err=True)
    for job in track(jobs, "restore", total=len(jobs), unit="face"):
        try:
            image = decode(read_file(job.candidate.payload, job.candidate.problem))
            drawn = draw_samples(pipeline, image, how)
        except UnreadableError as error:
            yield Rejection(job.candidate.name, str(error))
            continue
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.write_bytes(encode_png(drawn[0]))
        if how.samples > 1:
            picture = encode_png(uncertainty_picture(drawn, calibration))
            job.target.with_suffix(".uncertainty.png").write_bytes(picture)
