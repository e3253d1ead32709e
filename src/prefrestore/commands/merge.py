"""``prefrestore merge``: put the parts of a cut-up degrade run together."""

from __future__ import annotations

from pathlib import Path

import click

from prefrestore import artifacts

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("parts", type=FOLDER, nargs=-1, required=True)
@click.option("--output", type=FOLDER, required=True, help="where the whole goes")
def command(parts: tuple[Path, ...], output: Path) -> None:
    """Merge PARTS, made by degrade with shard_index 0, 1, ..., into the pairs that one run would have made."""
    from prefrestore.data.pairing import merge_pairs

    with artifacts.replacing(output) as folder:
        artifacts.write_manifest(folder, merge_pairs(parts, folder))
    click.echo(f"{len(parts)} parts merged into {output}")
