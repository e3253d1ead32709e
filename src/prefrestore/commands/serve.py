"""``prefrestore serve``: a predictor that speaks the Open Inference Protocol (V2)."""

from __future__ import annotations

from pathlib import Path

import click

from prefrestore import config, configfile


@click.command()
@click.argument("address")
@click.option("--name", help="model's name in the protocol; by default that of the registry, else prefrestore")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; 0.0.0.0 opens it to all")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--registry", help="MLflow address for models:/ addresses; the configuration's by default")
@click.option(
    "--refresh",
    type=click.FloatRange(min=0.1),
    default=15.0,
    show_default=True,
    help="seconds between looks at the alias",
)
@click.option("--max-body", type=click.IntRange(min=1024), default=16 << 20, show_default=True, help="bytes")
@click.option("--max-pixels", type=click.IntRange(min=256), default=25_000_000, show_default=True, help="of a picture")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="for one face")
@click.option("--max-waiting", type=click.IntRange(min=1), default=32, show_default=True, help="requests; more get 503")
@click.option("--config", "file", type=click.Path(path_type=Path), default=Path("params.yaml"), help="configuration")
def command(  # noqa: PLR0913  one parameter per option
    address: str,
    name: str | None,
    host: str,
    port: int,
    registry: str | None,
    refresh: float,
    max_body: int,
    max_pixels: int,
    threads: int,
    max_waiting: int,
    file: Path,
) -> None:
    """Serve the model at ADDRESS; when an alias moves, the new version takes over without a dropped request.

    ADDRESS is models:/NAME@champion, models:/NAME/VERSION, s3://BUCKET/PREFIX/DIGEST or a folder.
    """
    if registry is None and address.startswith("models:"):
        registry = configfile.load_section(file, "publish", config.PublishConfig).registry
    from prefrestore.serving.server import Listening, serve

    listening = Listening(host, port, refresh, threads)
    limits = {"body_bytes": max_body, "image_pixels": max_pixels, "waiting": max_waiting}
    serve(address, registry or "", name, listening, limits)
