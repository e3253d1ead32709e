"""What ``import prefrestore`` offers to programs: one call for a photograph, the pipeline, the weights that ship."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prefrestore.data.images import UnreadableError, read_file, to_rgb
from prefrestore.data.photographs import Photograph, read_photograph
from prefrestore.errors import UserError
from prefrestore.evaluation.calibration import Calibration
from prefrestore.evaluation.restorer import Drawing, load_calibration
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.shipped import shipped_address
from prefrestore.serving.photograph import Restored, Wishes, number_of_samples, restore_photograph, usable

__all__ = ["PrefRestorePipeline", "restore", "shipped_weights"]


def restore(  # noqa: PLR0913  what `prefrestore restore` takes, by the same names
    photograph: str | Path | bytes | Image.Image | np.ndarray,
    *,
    text: str = "",
    samples: int | None = None,
    fidelity: float | None = None,
    uncertainty: bool = False,
    scale: float = 1.0,
    aligned: bool = False,
    every_face: bool = False,
    steps: int | None = None,
    seed: int = 0,
    model: str | Path | None = None,
    registry: str = "sqlite:///mlflow.db",
    device: str = "cpu",
) -> Restored:
    """Restore the faces of a photograph; equal input gives equal pixels.

    The model is loaded at the first call and kept for the next.

    Args:
        photograph: a file, its bytes, a picture, or RGB [H, W, 3] uint8.
        text: what is known of the person.
        samples: drawn of each face to be compared; by default 8 for ``fidelity`` and ``uncertainty``.
        fidelity: 0 is one sample, sharp; 1 the mean of all, nearest to the truth on average. By default the model's own
            restoration.
        uncertainty: draw several samples, so that the result says where it was guessed.
        scale: enlarges the photograph.
        aligned: it is one square, aligned face; nothing is looked for.
        every_face: restores faces too that are sharp, very small or turned away.
        steps: sampling steps; by default the model's own, and at least 4 for samples that are compared.
        seed: another one draws other restorations.
        model: an address that ``prefrestore restore --model`` takes; by default the weights that ship.
        registry: of addresses ``models:/``.
        device: such as ``cuda``.

    Raises:
        UserError: the photograph cannot be read, a wish is out of range, or there is no such model.
    """
    if not 0 <= (fidelity or 0) <= 1 or not 1 <= scale <= 8:
        raise UserError(f"fidelity {fidelity}, scale {scale:g}: fidelity lies in 0 to 1, scale in 1 to 8")
    number = number_of_samples(samples, fidelity, uncertainty=uncertainty)
    try:
        read = _read(photograph)
        pipeline, calibration = _model(str(model or shipped_address()), registry, usable(device))
        wishes = Wishes(Drawing(number, steps, seed, text), fidelity, scale, aligned, every_face)
        return restore_photograph(pipeline, read, wishes, calibration)
    except UnreadableError as error:
        raise UserError(f"the photograph cannot be restored: {error}: give another") from None


def shipped_weights() -> Path:
    """Return the folder of the weights that ship, every file verified: ``base`` and ``policy`` lie in it.

    Raises:
        UserError: there are none, or one was changed.
    """
    return locate(resolve(shipped_address(), "")).folder


def _read(photograph: str | Path | bytes | Image.Image | np.ndarray) -> Photograph:
    if isinstance(photograph, Image.Image):
        return Photograph(np.array(to_rgb(ImageOps.exif_transpose(photograph))))
    if isinstance(photograph, np.ndarray):
        if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
            raise UnreadableError(f"an array {list(photograph.shape)} of {photograph.dtype}, not [H, W, 3] of uint8")
        return Photograph(photograph)
    return read_photograph(read_file(Path(photograph) if isinstance(photograph, str) else photograph))


@lru_cache(maxsize=1)
def _model(address: str, registry: str, device: str) -> tuple[PrefRestorePipeline, Calibration | None]:
    located = locate(resolve(address, registry))
    return load(located).to(device), load_calibration(located.folder)
