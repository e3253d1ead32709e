"""``prefrestore model ship``: base and adapter become the weights that ship with the package."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--base", type=FOLDER, required=True, help="artifact base")
@click.option("--policy", type=FOLDER, required=True, help="artifact policy, trained on that base")
@click.option("--metrics", type=FOLDER, help="folder of metrics.json: measured quality, for the card")
@click.option(
    "--calibration",
    type=FOLDER,
    help="the same of an evaluation in 4 steps, in which samples are compared: for --uncertainty [default: --metrics]",
)
@click.option(
    "--steps", type=click.IntRange(1), help="default sampling steps, as measured; the base's own if not given"
)
@click.option("--out", "-o", type=FOLDER, help="folder to write; the package's own by default")
def ship(  # noqa: PLR0913  one argument per option
    base: Path, policy: Path, metrics: Path | None, calibration: Path | None, steps: int | None, out: Path | None
) -> None:
    """Write base and adapter in half precision, with a card, where `restore` finds them without --model."""
    from prefrestore.registry import shipped

    report = shipped.ship(base, policy, out or shipped.SHIPPED, metrics, calibration, steps)
    click.echo(f"{report.folder}: {report.size / 1e6:.1f} MB, release {report.digest:.12}")
