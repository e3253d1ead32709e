"""What a source offers: candidates, their ids and the split they belong to."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from prefrestore.data.tables import Split
from prefrestore.runtime import seeding

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
    | {".heic", ".heif", ".avif", ".jxl", ".jp2"}  # not read here: set aside with a reason
)
SPLITS: dict[str, Split] = {"train": "train", "val": "eval", "validation": "eval", "eval": "eval", "test": "eval"}
MAX_FILE_BYTES = 256 * 2**20
MAX_CAPTION = 2000
MAX_ID = 96


@dataclass(frozen=True)
class Candidate:
    """A source image not looked at yet."""

    id: str
    name: str  # as the source calls it
    payload: Path | bytes
    caption: str = ""
    identity: str = ""
    licence: str = ""  # empty: the source does not name one
    split: Split | None = None  # None: to be decided by hash
    problem: str = ""  # why it cannot be taken, where that is known already


def split_by_hash(seed: int, key: str, eval_share: float) -> Split:
    """Return the split of whatever ``key`` names; equal keys never part."""
    return "eval" if seeding.derive("split", seed, key) / 2**63 < eval_share else "train"


def split_of_name(name: str) -> Split | None:
    """Return the split that a path tells: ``val/a.jpg`` and ``validation-00001-of-00002.parquet`` are ``eval``."""
    for part in name.split("/"):
        word = re.split(r"[^a-z]", part.lower(), maxsplit=1)[0]
        if word in SPLITS:
            return SPLITS[word]
    return None


def printable(text: str) -> str:
    """Return text with undecodable bytes of a file name made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str | bytes) -> str:
    """Return a caption or the like as one line of bounded length; bytes that are no UTF-8 are replaced."""
    decoded = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return " ".join(decoded.split())[:MAX_CAPTION]


def identifier(text: str) -> str:
    """Return a name fit for files and tables: ASCII letters, digits, ``.-_``; an altered name gets a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text).strip(".-")[:MAX_ID]
    return plain if plain == text.replace("/", "-") else f"{plain or 'image'}-{short_digest(text)}"


def short_digest(text: str) -> str:
    """Return eight hexadecimal digits of a text's sha256."""
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def unique(candidates: list[Candidate]) -> list[Candidate]:
    """Sort by id; where several have the same, each of them gets a digest of its name."""
    counts = Counter(candidate.id for candidate in candidates)
    renamed = [
        replace(row, id=f"{row.id}-{short_digest(row.name)}") if counts[row.id] > 1 else row for row in candidates
    ]
    return sorted(renamed, key=lambda candidate: candidate.id)
