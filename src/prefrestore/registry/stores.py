"""Where releases and audit logs lie: a folder or S3, behind the few operations that both can do for certain.

A release ``STORE/DIGEST`` is there when its manifest is, and that comes last; it is never changed. Small objects (the
entries of an audit log) can be created once and never written again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry import release

S3 = "s3://"


class Store(Protocol):
    """A place for releases and audit logs."""

    def put(self, parts: Mapping[str, Path]) -> tuple[str, str]:
        """Add a release, whole or not at all; return its digest and address. Adding it again is harmless."""

    def check(self, digest: str) -> None:
        """Check that a release is there and whole, as far as that goes without fetching it."""

    def fetch(self, digest: str) -> Path:
        """Return a folder on this machine that holds the release, every file verified."""

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None if there is none."""

    def create(self, name: str, content: bytes) -> bool:
        """Create a small object, and say whether that was done: False if one of this name exists."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the JSON objects in a folder, sorted, with the folder."""


def open_store(address: str) -> Store:
    """Return the store at an address: a folder, ``file:///FOLDER`` or ``s3://BUCKET/PREFIX``."""
    if address.startswith(S3):
        return S3Store(address)
    return FolderStore(folder_at(address))


def folder_at(address: str) -> Path:
    """Return the folder that a path or a file address names.

    Raises:
        UserError: the address is of another kind.
    """
    parts = urlparse(address)
    if parts.scheme not in ("", "file"):
        raise UserError(f"{address}: releases lie in a folder or in S3: write a path or s3://BUCKET/PREFIX")
    return Path(unquote(parts.path) if parts.scheme else address)


def split(address: str) -> tuple[Store, str]:
    """Return store and digest of a release's address, ``STORE/DIGEST``."""
    place, _, digest = address.rstrip("/").rpartition("/")
    return open_store(place), digest


class FolderStore:
    """A folder; a release is written beside its place and renamed."""

    def __init__(self, root: Path) -> None:
        """Open the store; it need not exist yet."""
        self.root = root

    def put(self, parts: Mapping[str, Path]) -> tuple[str, str]:
        """Copy a release into the folder; see :class:`Store`.

        Raises:
            UserError: as ``release.describe``, or what stands there already is damaged.
        """
        manifest = release.describe(parts)
        digest = release.digest(manifest)
        target = self.root / digest
        if not target.exists():
            with artifacts.replacing(target) as folder:
                for name, source in release.members(parts).items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, folder / name)
                artifacts.write_json(folder / artifacts.MANIFEST, manifest)
        release.verify(target, digest)
        return digest, target.resolve().as_uri()

    def check(self, digest: str) -> None:
        """Verify every file.

        Raises:
            UserError: as ``release.verify``.
        """
        release.verify(self.root / digest, digest)

    def fetch(self, digest: str) -> Path:
        """Verify every file and return the release's own folder; errors as :meth:`check`."""
        self.check(digest)
        return self.root / digest

    def read(self, name: str) -> bytes | None:
        """See :class:`Store`."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def create(self, name: str, content: bytes) -> bool:
        """See :class:`Store`."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link fails if the name exists, on every file system, and the file is complete when it appears.
            target.hardlink_to(temporary)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def names(self, folder: str) -> list[str]:
        """See :class:`Store`."""
        return sorted(f"{folder}/{path.name}" for path in (self.root / folder).glob("[!.]*.json"))


class S3Store:
    """A prefix in S3; a release's manifest is created last, and readers look at nothing else."""

    def __init__(self, address: str) -> None:
        """Open the store; the bucket must exist."""
        self.address = address.rstrip("/")
        self._keeps_conditions = False

    def put(self, parts: Mapping[str, Path]) -> tuple[str, str]:
        """Upload a release; what an earlier attempt brought is not sent again. See :class:`Store`.

        Raises:
            UserError: as ``release.describe`` and ``uploads.upload``.
        """
        from prefrestore.runtime import uploads

        manifest = release.describe(parts)
        digest = release.digest(manifest)
        if self.read(f"{digest}/{artifacts.MANIFEST}") is None:
            for name, path in release.members(parts).items():
                uploads.upload(path, f"{self.address}/{digest}/{name}", manifest["files"][name]["sha256"])
            content = artifacts.canonical_json(manifest).encode()
            self.create(f"{digest}/{artifacts.MANIFEST}", content)
        self.check(digest)
        return digest, f"{self.address}/{digest}"

    def check(self, digest: str) -> None:
        """Check the manifest's digest, and that exactly its files are there in their sizes.

        Raises:
            UserError: names the first thing that is wrong.
        """
        from prefrestore.runtime import storage

        place = f"{self.address}/{digest}"
        files = self._files(digest)
        found = {row.uri.removeprefix(f"{place}/"): row.size for row in storage.find_objects(f"{place}/")}
        for name, entry in files.items():
            if found.get(name) != entry.get("size"):
                state = "was changed after release" if name in found else "is missing"
                raise UserError(f"{place}: {name} {state}: publish the release again elsewhere")
        for name in sorted(set(found) - set(files) - {artifacts.MANIFEST}):
            raise UserError(f"{place}: {name} is no part of the release: remove it")

    def fetch(self, digest: str) -> Path:
        """Download the release into the cache unless it is there; errors as :meth:`pull`."""
        from prefrestore.runtime import storage

        target = storage.cache_folder() / "releases" / digest
        with _alone(target):
            if target.is_dir():
                try:
                    release.verify(target, digest)
                    return target
                except UserError:
                    shutil.rmtree(target)  # a damaged copy; the store has the true one
            return self.pull(digest, target)

    def pull(self, digest: str, target: Path) -> Path:
        """Download a release to a place where nothing is yet; a download that was cut is taken up again.

        Raises:
            UserError: no such release, no rights, cut too often, no space, or a file is not what the manifest says.
        """
        from prefrestore.runtime import storage

        place, waiting = f"{self.address}/{digest}", target.with_name(f".{target.name}.partial")
        files = self._files(digest)
        found = {row.uri.removeprefix(f"{place}/"): row for row in storage.find_objects(f"{place}/")}
        if lost := sorted(set(files) - set(found)):
            raise UserError(f"{place}: {lost[0]} is missing: publish the release again elsewhere")
        try:
            for name, entry in files.items():
                path = waiting / name
                if not path.is_file() or path.stat().st_size != entry["size"]:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(storage.download(found[name]), path)
            (waiting / artifacts.MANIFEST).write_bytes(self._manifest(digest))
        except OSError as error:
            raise UserError(f"{target}: {error.strerror}: make space there and repeat: it goes on") from None
        try:
            release.verify(waiting, digest)
        except UserError:
            shutil.rmtree(waiting)
            raise
        waiting.replace(target)
        return target

    def read(self, name: str) -> bytes | None:
        """See :class:`Store`."""
        from prefrestore.runtime import storage

        return storage.content(f"{self.address}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """See :class:`Store`; errors as ``storage.put_new`` and ``uploads.check_conditions``."""
        from prefrestore.runtime import storage, uploads

        if not self._keeps_conditions:
            uploads.check_conditions(f"{self.address}/.created-once")
            self._keeps_conditions = True
        return storage.put_new(*storage.split(f"{self.address}/{name}"), content)

    def names(self, folder: str) -> list[str]:
        """See :class:`Store`."""
        from prefrestore.runtime import storage

        rows = storage.find_objects(f"{self.address}/{folder}/")
        names = (row.uri.removeprefix(f"{self.address}/") for row in rows)
        return sorted(name for name in names if name.endswith(".json"))

    def _files(self, digest: str) -> dict[str, dict[str, Any]]:
        return release.parse(self._manifest(digest), f"{self.address}/{digest}/{artifacts.MANIFEST}", digest)

    def _manifest(self, digest: str) -> bytes:
        data = self.read(f"{digest}/{artifacts.MANIFEST}")
        if data is None:
            raise UserError(f"{self.address}/{digest}: no complete release is there: publish it (again)")
        return data


def verified_member(store: Store, digest: str, name: str) -> bytes | None:
    """Return a small file of a release, checked against the manifest; None if the release has none of that name.

    Raises:
        UserError: it is not what the manifest says, or there is no such release.
    """
    place = f"release {digest:.12}"
    data = store.read(f"{digest}/{artifacts.MANIFEST}")
    if data is None:
        raise UserError(f"{place}: no complete release is there: publish it (again)")
    entry = release.parse(data, place, digest).get(name)
    if entry is None:
        return None
    content = store.read(f"{digest}/{name}")
    if content is None or hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise UserError(f"{place}: {name} was changed after release: fetch or publish the release again")
    return content


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time work on a folder of the cache; the lock goes with the process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
