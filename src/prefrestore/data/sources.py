"""Where faces come from: every source gives candidates in a fixed order; none of them decodes pixels."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from prefrestore.config import IngestConfig
from prefrestore.data.tables import Split
from prefrestore.errors import UserError
from prefrestore.runtime import seeding

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
) | {".pgm", ".heic", ".heif", ".avif", ".jxl", ".jp2"}
SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "eval", "eval": "eval"}
MAX_FILE_BYTES = 256 * 2**20
MAX_CAPTION = 2000


@dataclass(frozen=True)
class Candidate:
    """A source image not looked at yet."""

    id: str
    name: str  # as the source calls it
    payload: Path | bytes
    caption: str = ""
    identity: str = ""
    split: Split | None = None  # None: to be decided by hash
    problem: str = ""  # why it cannot be taken, where that is known already


def share(*parts: int | str) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    return seeding.derive(*parts) / 2**63


def split_by_hash(seed: int, key: str, eval_share: float) -> Split:
    """Return the split of whatever ``key`` names; equal keys never part."""
    return "eval" if share("split", seed, key) < eval_share else "train"


def candidates(config: IngestConfig) -> tuple[Iterator[Candidate], int | None]:
    """Return a source's candidates in a fixed order, and how many there are where that is known.

    Raises:
        UserError: the source does not exist or holds nothing that could be a face.
    """
    found = folder_candidates(Path(config.uri), split=config.split)
    return iter(found), len(found)


def folder_candidates(root: Path, *, split: str) -> list[Candidate]:
    """Return the image files under a folder in the order of their ids.

    Subfolders ``train`` and ``val`` (or ``eval``) are the splits if ``split`` is ``folder`` and one of them exists. The
    caption is the text file of the same stem; the identity is the folder an image lies in.

    Raises:
        UserError: there is no such folder, or no image file in it.
    """
    if not root.is_dir():
        raise UserError(f"ingest.uri: {root} is no folder: give the path of a folder of images")
    paths = [path for path in root.rglob("*") if _is_image_name(path.relative_to(root))]
    if not paths:
        raise UserError(f"ingest.uri: {root} holds no image files: expected JPEG, PNG, WebP, TIFF or BMP")
    by_folder = split == "folder" and any((root / name).is_dir() for name in SPLIT_FOLDERS)
    return _unique([_folder_candidate(root, path, by_folder) for path in paths])


def _is_image_name(relative: Path) -> bool:
    return relative.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts)


def _folder_candidate(root: Path, path: Path, by_folder: bool) -> Candidate:
    relative = path.relative_to(root)
    split = SPLIT_FOLDERS.get(relative.parts[0]) if by_folder else None
    problem = _problem(root, path)
    if by_folder and split is None:
        problem = "outside the folders train and val"
    return Candidate(
        id=identifier(relative.with_suffix("").as_posix()),
        name=_printable(relative.as_posix()),
        payload=path,
        caption="" if problem else _side_car(root, path),
        identity=_printable(relative.parent.as_posix()) if len(relative.parts) > 1 else _printable(relative.stem),
        split=split,
        problem=problem,
    )


def _problem(root: Path, path: Path) -> str:
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError):
        return "link to nowhere or unreadable"
    if not target.is_relative_to(root.resolve()):
        return "link out of the folder"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > MAX_FILE_BYTES:
        return "file too large"
    return ""


def _side_car(root: Path, path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file() or _problem(root, text):
        return ""
    return " ".join(text.read_text(encoding="utf-8", errors="replace").split())[:MAX_CAPTION]


def _printable(text: str) -> str:
    """Return text with undecodable bytes of a file name made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def identifier(text: str) -> str:
    """Return a name fit for files and tables: ASCII letters, digits, dot, dash; altered names get a digest."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-_") else "-" for letter in text)
    plain = plain.strip(".-")[:80]
    return plain if plain == text.replace("/", "-") else f"{plain or 'image'}-{_digest(text)}"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _unique(candidates: list[Candidate]) -> list[Candidate]:
    """Sort by id; where several have the same, all of them get a digest of their name."""
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.id] = counts.get(candidate.id, 0) + 1
    renamed = [
        Candidate(**{**vars(row), "id": f"{row.id}-{_digest(row.name)}"}) if counts[row.id] > 1 else row
        for row in candidates
    ]
    return sorted(renamed, key=lambda candidate: candidate.id)
