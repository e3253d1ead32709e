"""Importing pair data of the usual public layouts into a vote store.

Layouts: ``chosen``/``rejected`` images, or two images with ``label_0``/``label_1`` (1 and 0; 0.5 each for a tie). A row
must also carry the degraded image they restore: the reward sees it, and it cannot be made up.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefrestore import __version__, artifacts
from prefrestore.data.images import UnreadableError, decode, decode_png, encode_png
from prefrestore.data.preferences import Judgement, pair_id, pixel_digest
from prefrestore.data.tables import Rejection
from prefrestore.data.vote_store import append
from prefrestore.errors import UserError
from prefrestore.runtime.shelf import Place, Shelf, open_shelf

IMAGES, INPUTS = "images", "inputs"
UNKNOWN_SEED = -1
IMPORT_TIME = "2000-01-01T00:00:00Z"
"""Time of an imported judgement that names none: a fixed one, so that importing twice adds nothing."""

IMAGE_COLUMNS = (("chosen", "rejected"), ("image_0", "image_1"), ("jpg_0", "jpg_1"), ("image_a", "image_b"))
LQ_COLUMNS = ("lq", "input", "source_image")
TEXT_COLUMNS = ("caption", "text", "prompt")
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Layout:
    """Which columns hold what."""

    first: str
    second: str
    lq: str
    text: str | None
    labelled: bool


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    judgements: int
    rejected: tuple[Rejection, ...]


def import_pairs(file: Path, store: Place, annotator: str) -> Imported:
    """Add every usable row of ``file`` to ``store``; rows that cannot be used are named.

    Images may be bytes, ``{"bytes": ...}`` or ``{"path": ...}`` mappings, base64 text, or paths relative to the file.

    Raises:
        UserError: the file is missing, of an unknown kind, or its columns are of no known layout.
    """
    rows = read_rows(file)
    layout = find_layout(set(rows[0]) if rows else set(), file)
    shelf = open_shelf(store)
    judgements, rejected = [], []
    for number, row in enumerate(rows):
        try:
            judgements.append(_import_row(row, layout, file.parent, shelf, annotator))
        except (UnreadableError, ValueError, OSError) as error:
            rejected.append(Rejection(f"{file.name}:{number}", " ".join(str(error).split())))
    append(store, judgements)
    return Imported(len(judgements), tuple(rejected))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines, CSV or Parquet.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    readers = {".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise UserError(f"{file}: is none of {', '.join(readers)}: convert it first")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        return readers[file.suffix](file)
    except (ValueError, OSError, RecursionError) as error:  # what pandas, pyarrow and json raise on damaged files
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split()):.100}): mend the file") from None


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return rows


def _read_csv(file: Path) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in pd.read_csv(file).to_dict("records")]


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in pd.read_parquet(file).to_dict("records")]


def find_layout(columns: set[str], file: Path) -> Layout:
    """Recognise the layout by its columns.

    Raises:
        UserError: it is none that is known, or the degraded image is missing.
    """
    pair = next((names for names in IMAGE_COLUMNS if columns.issuperset(names)), None)
    labelled = pair is not None and pair[0] != "chosen"
    if pair is None or (labelled and not columns.issuperset({"label_0", "label_1"})):
        raise UserError(f"{file}: columns chosen and rejected, or two images with label_0 and label_1, are needed")
    lq = next((name for name in LQ_COLUMNS if name in columns), None)
    if lq is None:
        raise UserError(f"{file}: the degraded image is missing: name its column {' or '.join(LQ_COLUMNS)}")
    text = next((name for name in TEXT_COLUMNS if name in columns), None)
    return Layout(*pair, lq, text, labelled)


def _import_row(row: Mapping[str, Any], layout: Layout, folder: Path, shelf: Shelf, annotator: str) -> Judgement:
    choice = _choice(row) if layout.labelled else "a"
    lq, first, second = (load_image(row.get(name), folder) for name in (layout.lq, layout.first, layout.second))
    if not lq.shape == first.shape == second.shape:
        raise ValueError(f"the images differ in size: {lq.shape}, {first.shape}, {second.shape}")
    lq_digest = put_input(shelf, lq, str(row.get(layout.text) or "") if layout.text else "")
    digest_a, digest_b = put_image(shelf, first), put_image(shelf, second)
    return Judgement(
        pair_id=pair_id(lq_digest, digest_a, digest_b),
        lq_id=f"import-{lq_digest[:16]}/0",
        lq_digest=lq_digest,
        digest_a=digest_a,
        digest_b=digest_b,
        model_a="import",
        model_b="import",
        seed_a=UNKNOWN_SEED,
        seed_b=UNKNOWN_SEED,
        choice=choice,
        annotator=annotator,
        repeat=0,
        source="import",
        instruction="",
        time=IMPORT_TIME,
        tool_version=__version__,
    )


def _choice(row: Mapping[str, Any]) -> str:
    try:
        first, second = float(row["label_0"]), float(row["label_1"])
    except (TypeError, ValueError):
        raise ValueError(f"labels must be numbers, found {row['label_0']!r:.20} and {row['label_1']!r:.20}") from None
    if not (0 <= first <= 1 and abs(first + second - 1) < TIE_TOLERANCE):
        raise ValueError(f"labels must sum to one, found {first:g} and {second:g}")
    if abs(first - second) < TIE_TOLERANCE:
        return "tie"
    return "a" if first > second else "b"


def load_image(value: Any, folder: Path) -> np.ndarray:
    """Decode one image cell to RGB [H, W, 3] uint8; paths must lie inside ``folder``.

    Raises:
        ValueError: the cell holds no image.
        UnreadableError: the image is damaged.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return decode(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"no image in the cell ({type(value).__name__})")
    path = (folder / value).resolve() if len(value) < 1024 and "\0" not in value else folder
    if path.is_file():
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{value:.80} lies outside the folder of the file")
        return decode(path.read_bytes())
    try:
        return decode(base64.b64decode(value, validate=True))
    except binascii.Error:
        raise ValueError(f"{value:.80} is neither a file beside the table nor base64") from None


def put_image(shelf: Shelf, image: np.ndarray) -> str:
    """Keep an image under the sha256 of its PNG bytes, written whole or not at all; return the digest."""
    data = encode_png(image)
    digest = hashlib.sha256(data).hexdigest()
    shelf.put(f"{IMAGES}/{digest}.png", data)
    return digest


def put_input(shelf: Shelf, lq: np.ndarray, text: str) -> str:
    """Keep a degraded image and its text under the digest of its pixels, and return that."""
    digest = pixel_digest(lq)
    stored = {"image": put_image(shelf, lq), "text": text}
    shelf.put(f"{INPUTS}/{digest}.json", artifacts.canonical_json(stored).encode())
    return digest


def stored_image(shelf: Shelf, digest: str) -> np.ndarray | None:
    """Return an image [H, W, 3] the store keeps, or None if it does not."""
    data = shelf.get(f"{IMAGES}/{digest}.png")
    return None if data is None else decode_png(data)


def stored_input(shelf: Shelf, digest: str) -> tuple[np.ndarray, str] | None:
    """Return a degraded image [H, W, 3] the store keeps and its text, or None if it does not."""
    data = shelf.get(f"{INPUTS}/{digest}.json")
    if data is None:
        return None
    stored = json.loads(data)
    image = stored_image(shelf, stored["image"])
    return None if image is None else (image, stored["text"])
