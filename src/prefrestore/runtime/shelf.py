"""A place where small files are put once, whole or not at all, and never changed: a folder, or a prefix in S3."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from prefrestore.errors import UserError
from prefrestore.runtime import storage

Place = str | Path
"""A folder, or ``s3://BUCKET/PREFIX``."""


class Shelf(Protocol):
    """Files by name; a name is a relative POSIX path."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    def exists(self) -> bool:
        """Return whether there is such a place."""

    def names(self, pattern: str) -> list[str]:
        """Return the names that match a pattern of ``*``, sorted; a ``*`` does not reach over a slash."""

    def get(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is none of that name."""

    def put(self, name: str, data: bytes) -> None:
        """Keep ``data`` under ``name``, whole or not at all and durably; what is there already stays as it is."""

    def remove(self, name: str) -> None:
        """Take a file away; none of that name is no fault."""


def open_shelf(place: Place) -> Shelf:
    """Return the shelf at a folder or an S3 address.

    Raises:
        UserError: the address names no bucket.
    """
    text = str(place)
    if not text.startswith(storage.SCHEME):
        return FolderShelf(Path(place))
    bucket, _, prefix = text.removeprefix(storage.SCHEME).strip("/").partition("/")
    if not bucket:
        raise UserError(f"{text}: is no S3 address: write s3://BUCKET/PREFIX")
    return S3Shelf(bucket, f"{prefix}/" if prefix else "")


@dataclass(frozen=True)
class FolderShelf:
    """A folder."""

    root: Path

    @property
    def place(self) -> str:
        """See :class:`Shelf`."""
        return str(self.root)

    def exists(self) -> bool:
        """See :class:`Shelf`."""
        return self.root.is_dir()

    def names(self, pattern: str) -> list[str]:
        """See :class:`Shelf`."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file())

    def get(self, name: str) -> bytes | None:
        """See :class:`Shelf`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """See :class:`Shelf`."""
        target = self.root / name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def remove(self, name: str) -> None:
        """See :class:`Shelf`."""
        (self.root / name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class S3Shelf:
    """The objects below a prefix; a put is conditional, so that two writers of one name do not disturb each other."""

    bucket: str
    prefix: str

    @property
    def place(self) -> str:
        """See :class:`Shelf`."""
        return f"{storage.SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def exists(self) -> bool:
        """See :class:`Shelf`; a prefix without objects is an empty place, a missing bucket an error."""
        storage.keys(self.bucket, self.prefix)
        return True

    def names(self, pattern: str) -> list[str]:
        """See :class:`Shelf`."""
        start = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        found = (key.removeprefix(self.prefix) for key in storage.keys(self.bucket, self.prefix + start))
        parts = pattern.split("/")
        return sorted(name for name in found if _matches(name.split("/"), parts))

    def get(self, name: str) -> bytes | None:
        """See :class:`Shelf`."""
        return storage.get(self.bucket, self.prefix + name)

    def put(self, name: str, data: bytes) -> None:
        """See :class:`Shelf`."""
        storage.put_new(self.bucket, self.prefix + name, data)

    def remove(self, name: str) -> None:
        """See :class:`Shelf`."""
        storage.remove(self.bucket, self.prefix + name)


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))
