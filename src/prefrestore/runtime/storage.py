"""S3: listing, conditional puts, downloads that resume, verify what they got and never look whole when they are not.

Credentials, region and endpoint are those of boto3's own environment variables and files.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own name
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError

from prefrestore.errors import UserError

SCHEME = "s3://"
CHUNK_BYTES = 1 << 20
CUTS_ALLOWED = 6
PAUSE_SECONDS = 0.2
CUT = (IncompleteReadError, ResponseStreamingError, HTTPClientError, HTTPError, ConnectionResetError)
REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
MISSING = {"404", "NoSuchBucket", "NoSuchKey"}
EXISTS = {"412", "PreconditionFailed"}
BUSY = "ConditionalRequestConflict"
"""Another writer is putting the same key at this moment: ask again."""


@dataclass(frozen=True)
class Remote:
    """An object in S3."""

    bucket: str
    key: str
    size: int
    etag: str

    @property
    def uri(self) -> str:
        """Return its address."""
        return f"{SCHEME}{self.bucket}/{self.key}"


def cache_folder() -> Path:
    """Return where unfinished downloads wait: PREFRESTORE_CACHE, or a folder in the user's cache."""
    named = os.environ.get("PREFRESTORE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "prefrestore"


def list_objects(uri: str) -> list[Remote]:
    """Return the objects below an address, sorted by key.

    Raises:
        UserError: malformed address, no rights, no such bucket, no objects, or nobody answers.
    """
    found = find_objects(uri)
    if not found:
        raise UserError(f"{uri}: no object has this prefix: check bucket and prefix")
    return found


def find_objects(uri: str) -> list[Remote]:
    """Return the objects below an address, sorted by key; there may be none. Errors as :func:`list_objects`."""
    bucket, prefix = split(uri)
    with explained(uri):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [
            Remote(bucket, row["Key"], row["Size"], row["ETag"]) for page in pages for row in page.get("Contents", ())
        ]
    return sorted(found, key=lambda remote: remote.key)


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of an address.

    Raises:
        UserError: it is no S3 address.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise UserError(f"{uri}: is no S3 address: write s3://BUCKET/PREFIX")
    return bucket, key


def content(uri: str) -> bytes | None:
    """Return the content of a small object, or None if there is no such object; errors as :func:`list_objects`."""
    return get(*split(uri))


def read(remote: Remote) -> bytes:
    """Return the content of a small object; errors as :func:`download`."""
    path = download(remote)
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def download(remote: Remote) -> Path:
    """Fetch an object into the cache, continuing where an earlier attempt stopped, and verify it.

    Raises:
        UserError: no rights, gone or changed meanwhile, cut too often, or the content is not what S3 promised.
    """
    name = hashlib.sha256(f"{remote.uri}\0{remote.etag}".encode()).hexdigest()
    partial = cache_folder() / f"{name}.part"
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and partial.stat().st_size > remote.size:
        partial.unlink()
    with explained(remote.uri):
        _fill(remote, partial)
        algorithm, expected = _promise(remote)
    with partial.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest() if expected else None
    if expected and found != expected:
        partial.unlink()
        raise UserError(f"{remote.uri}: its {algorithm} is {found}, S3 promised {expected}: repeat, or upload it again")
    return partial.replace(partial.with_suffix(Path(remote.key).suffix or ".bin"))


def _fill(remote: Remote, partial: Path) -> None:
    """Append to a partial file until it is complete; a cut connection is taken up again."""
    cuts = 0
    while (done := partial.stat().st_size if partial.exists() else 0) < remote.size or not partial.exists():
        try:
            _append(remote, partial, done)
        except CUT as error:
            cuts += 1
            if cuts > CUTS_ALLOWED:
                raise UserError(
                    f"{remote.uri}: the connection was cut {cuts} times, last at byte {partial.stat().st_size} of "
                    f"{remote.size} ({type(error).__name__}): repeat the command, it goes on from there"
                ) from None
            time.sleep(PAUSE_SECONDS * cuts)


def _append(remote: Remote, partial: Path, done: int) -> None:
    partial.touch()
    if remote.size == 0:
        return
    answer = client().get_object(
        Bucket=remote.bucket, Key=remote.key, Range=f"bytes={done}-{remote.size - 1}", IfMatch=remote.etag
    )
    with partial.open("ab") as stream:
        for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
            stream.write(chunk)
    if partial.stat().st_size < remote.size:
        raise IncompleteReadError(actual_bytes=partial.stat().st_size, expected_bytes=remote.size)


def _promise(remote: Remote) -> tuple[str, str | None]:
    """Return the digest that S3 states: ours in the metadata, or the MD5 that a simple upload has as its ETag."""
    metadata = client().head_object(Bucket=remote.bucket, Key=remote.key).get("Metadata", {})
    if "sha256" in metadata:
        return "sha256", metadata["sha256"]
    etag = remote.etag.strip('"')
    return "md5", None if "-" in etag else etag


def keys(bucket: str, prefix: str) -> list[str]:
    """Return the keys below a prefix, sorted; there may be none. Errors as :func:`list_objects`."""
    return [remote.key for remote in find_objects(f"{SCHEME}{bucket}/{prefix}")]


def get(bucket: str, key: str) -> bytes | None:
    """Return the content of a small object, checked by boto3, or None if there is none.

    Raises:
        UserError: no rights, no such bucket, or nobody answers.
    """
    with explained(f"{SCHEME}{bucket}/{key}"):
        for turn in range(1, CUTS_ALLOWED + 1):
            try:
                body: bytes = client().get_object(Bucket=bucket, Key=key)["Body"].read()
                return body
            except ClientError as error:
                if code_of(error) in {"404", "NoSuchKey"}:
                    return None
                raise
            except CUT:
                if turn == CUTS_ALLOWED:
                    raise
                time.sleep(PAUSE_SECONDS * turn)
    raise AssertionError("the last turn returns or raises")


def put_new(bucket: str, key: str, data: bytes) -> bool:
    """Keep ``data`` under ``key`` unless there is such an object already; return whether it was put.

    S3 shows an object whole or not at all, and the condition makes one of several writers win.

    Raises:
        UserError: no rights, no such bucket, or nobody answers.
    """
    digest = hashlib.sha256(data)
    checksum = base64.b64encode(digest.digest()).decode()
    stored = {"Bucket": bucket, "Key": key, "Body": data, "ChecksumSHA256": checksum}
    with explained(f"{SCHEME}{bucket}/{key}"):
        for turn in range(1, CUTS_ALLOWED + 1):
            try:
                client().put_object(**stored, Metadata={"sha256": digest.hexdigest()}, IfNoneMatch="*")
                return True
            except ClientError as error:
                if code_of(error) in EXISTS:
                    return False
                if code_of(error) != BUSY or turn == CUTS_ALLOWED:
                    raise
                time.sleep(PAUSE_SECONDS * turn)
    raise AssertionError("the last turn returns or raises")


def remove(bucket: str, key: str) -> None:
    """Delete an object; none of that name is no fault.

    Raises:
        UserError: no rights, no such bucket, or nobody answers.
    """
    with explained(f"{SCHEME}{bucket}/{key}"):
        client().delete_object(Bucket=bucket, Key=key)


@cache
def client() -> Any:
    """Return the S3 client of this process."""
    timing = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
    return boto3.session.Session().client("s3", config=timing)


def forget_client() -> None:
    """Drop the client, so that the next call sees changed credentials."""
    client.cache_clear()


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one line for the user.

    Raises:
        UserError: no rights, no such bucket or object, cut connections, or nobody answers.
    """
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise UserError(f"{uri}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except ClientError as error:
        raise UserError(f"{uri}: {_reason(error)}") from None
    except ConnectionError as error:
        raise UserError(f"{uri}: S3 cannot be reached ({error}): check the network and AWS_ENDPOINT_URL") from None
    except HTTPClientError as error:
        raise UserError(f"{uri}: the connection to S3 was cut ({error}): repeat the command, it goes on") from None
    except BotoCoreError as error:
        raise UserError(f"{uri}: S3 cannot be used ({error}): check credentials, region and endpoint") from None


def code_of(error: ClientError) -> str:
    """Return S3's own name of a refusal."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _reason(error: ClientError) -> str:
    code = code_of(error)
    if code in REFUSED:
        return f"S3 refuses these credentials ({code}): check the keys and their rights"
    if code in MISSING:
        return f"there is no such bucket or object ({code}): check the address"
    if code in EXISTS:
        return "the object changed while it was read: repeat the command"
    return f"S3 answered {code}: try again later"
