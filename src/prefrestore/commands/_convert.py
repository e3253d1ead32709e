"""``prefrestore model convert``: published weights become folders that the stages read."""

from __future__ import annotations

from pathlib import Path

import click

from prefrestore import artifacts, configfile
from prefrestore.commands.config import preset_file

FOLDER = click.Path(path_type=Path)
PRESET = click.option("--preset", default="full", show_default=True, help="preset whose sizes the weights have")


@click.group()
def convert() -> None:
    """Turn published weights into folders of ours."""


@convert.command()
@click.argument("file", type=FOLDER)
@click.argument("out", type=FOLDER)
@PRESET
def tokenizer(file: Path, out: Path, preset: str) -> None:
    """Turn the published image tokenizer FILE (ta_tok.pth) into the folder OUT."""
    sizes = configfile.load(preset_file(preset)).train_codec.tokenizer
    from prefrestore.models.reference_tokenizer import convert_tokenizer

    converted = convert_tokenizer(file, sizes)
    with artifacts.replacing(out) as folder:
        converted.save_pretrained(folder)
    click.echo(f"{out}: image tokenizer, {converted.num_tokens} tokens of {converted.config.codebook_size} codes")


@convert.command("stage-a")
@click.argument("source")
@click.argument("out", type=FOLDER)
@click.option("--codec", help="clean codec, a folder or hub id, where the checkpoint holds none")
@PRESET
def stage_a(source: str, out: Path, codec: str | None, preset: str) -> None:
    """Turn a published Stage-A checkpoint SOURCE (a folder or hub id) into the pipeline OUT."""
    config = configfile.load(preset_file(preset))
    from prefrestore.models.codec import load_codec, published_codec
    from prefrestore.models.reference_import import Layout, import_stage_a
    from prefrestore.models.reference_layout import empty
    from prefrestore.models.reference_tokenizer import published_tokenizer

    sizes = config.train_codec
    clean = (
        load_codec(codec, where="--codec")
        if codec
        else empty(lambda: published_codec(sizes.widths, sizes.layers, sizes.latent_channels))
    )
    layout = Layout(config.pretrain, clean, published_tokenizer(sizes.tokenizer), config.ingest.image_size)
    pipeline = import_stage_a(source, layout)
    with artifacts.replacing(out) as folder:
        pipeline.save_pretrained(folder)
    click.echo(f"{out}: restorer for {pipeline.image_size} px, load it with PrefRestorePipeline.from_pretrained")
