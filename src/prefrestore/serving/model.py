"""The model that serves: one at a time, exchanged for a newer one when its address stands for another."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefrestore.errors import UserError
from prefrestore.registry.loader import Located, Source, load, locate, resolve

if TYPE_CHECKING:
    from PIL import Image

    from prefrestore.models.pipeline import PrefRestorePipeline


@dataclass(frozen=True)
class ServedModel:
    """A loaded model and what it is."""

    source: Source
    located: Located
    pipeline: PrefRestorePipeline

    @property
    def version(self) -> str:
        """Version in the registry, else the release's digest, else that it is a folder."""
        return self.located.version or (self.located.digest or "folder")[:12]

    @property
    def image_size(self) -> int:
        """Side of its pictures, pixels."""
        return self.pipeline.image_size

    def restore(self, picture: Image.Image, text: str, seed: int) -> Image.Image:
        """Restore one aligned face; equal input gives equal bytes, whatever else is asked beside it."""
        restored: Image.Image = self.pipeline(picture, text, seed).images[0]
        return restored


class Holder:
    """Holds the model in service and exchanges it; a request keeps the model it began with."""

    def __init__(self, address: str, registry: str, on_exchange: Callable[[str, bool], None]) -> None:
        """Load the model.

        Args:
            address: see ``registry.loader.resolve``.
            registry: MLflow address.
            on_exchange: told the version in service and whether the newest exchange went well.

        Raises:
            UserError: it cannot be resolved, fetched, verified or loaded.
        """
        self._address, self._registry, self._on_exchange = address, registry, on_exchange
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._model = self._load(resolve(address, registry))
        on_exchange(self._model.version, True)

    @property
    def model(self) -> ServedModel:
        """The model in service."""
        return self._model

    def refresh(self) -> None:
        """Exchange the model if its address stands for another now; if that fails, the old one goes on serving."""
        try:
            source = resolve(self._address, self._registry)
            if source == self._model.source:
                return
            model = self._load(source)
        except UserError as error:
            self._on_exchange(self._model.version, False)
            _say(f"goes on with version {self._model.version}: {error}")
            return
        self._model = model
        self._on_exchange(model.version, True)
        _say(f"version {model.version} serves")

    def watch(self, seconds: float) -> None:
        """Refresh every so many seconds until :meth:`close`."""

        def run() -> None:
            while not self._ended.wait(seconds):
                self.refresh()

        self._thread = threading.Thread(target=run, name="refresh", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _load(self, source: Source) -> ServedModel:
        located = locate(source)
        return ServedModel(source, located, load(located))


def _say(line: str) -> None:
    print(f"serve: {line}", file=sys.stderr, flush=True)
