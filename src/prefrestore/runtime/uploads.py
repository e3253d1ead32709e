"""Uploads to S3 that resume and whose bytes both sides checked."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from prefrestore.errors import UserError
from prefrestore.runtime.progress import track
from prefrestore.runtime.storage import client, code_of, explained, put_new, split

PART_BYTES = 8 << 20
MAX_PARTS = 9_000
"""S3 allows ten thousand; parts of larger files grow."""
THREADS = 4
GONE = {"404", "NoSuchKey", "NoSuchUpload"}


@dataclass(frozen=True)
class Part:
    """A stretch of a file, with the digests that S3 states of what it received."""

    number: int
    start: int
    size: int
    md5: bytes
    sha256: bytes


@dataclass(frozen=True)
class Target:
    """An object to be written."""

    bucket: str
    key: str

    def names(self) -> dict[str, str]:
        """Return bucket and key as boto3 calls them."""
        return {"Bucket": self.bucket, "Key": self.key}


def upload(path: Path, uri: str, sha256: str) -> None:
    """Bring a file to S3 unless it is there; parts that an earlier attempt brought are not sent again.

    Args:
        path: the file.
        uri: where to, ``s3://BUCKET/KEY``.
        sha256: digest of the file, hex; stored with the object.

    Raises:
        UserError: no rights, no such bucket, cut connection, or S3 holds other bytes than were sent.
    """
    target = Target(*split(uri))
    parts = list(parts_of(path))
    with explained(uri):
        if _holds(target, parts, sha256):
            return
        if len(parts) == 1:
            _send_whole(target, path, parts[0], sha256)
        else:
            _send_parts(target, path, parts, sha256)
        if not _holds(target, parts, sha256):
            client().delete_object(**target.names())
            raise UserError(f"{uri}: S3 received other bytes than {path} has: repeat the command")


def check_conditions(probe: str) -> None:
    """Check with an object of no content that a store refuses to create a thing twice; some that speak S3 overwrite it.

    Raises:
        UserError: it does not refuse.
    """
    place = split(probe)
    if put_new(*place, b"") and put_new(*place, b""):
        raise UserError(
            f"{probe}: this store has no conditional writes (If-None-Match), so decisions could overwrite each other: "
            "use another store, or a folder"
        )


def parts_of(path: Path) -> Iterator[Part]:
    """Cut a file into parts; a file of up to ``PART_BYTES``, also an empty one, is one part."""
    size = path.stat().st_size
    step = max(PART_BYTES, -(-size // MAX_PARTS))
    with path.open("rb") as stream:
        for number, start in enumerate(range(0, max(size, 1), step), 1):
            data = stream.read(step)
            md5 = hashlib.md5(data, usedforsecurity=False).digest()
            yield Part(number, start, len(data), md5, hashlib.sha256(data).digest())


def _holds(target: Target, parts: Sequence[Part], sha256: str) -> bool:
    """Say whether S3 has the object and states the digests of our bytes."""
    try:
        head = client().head_object(**target.names(), ChecksumMode="ENABLED")
    except ClientError as error:
        if code_of(error) in GONE:
            return False
        raise
    told = head.get("Metadata", {}).get("sha256")
    return head["ContentLength"] == sum(part.size for part in parts) and told == sha256 and _states(head, parts)


def _states(head: Mapping[str, Any], parts: Sequence[Part]) -> bool:
    """Compare S3's own digests of what it received with ours; an ETag is one unless a key service encrypts."""
    answers = []
    if not str(head.get("ServerSideEncryption", "")).startswith("aws:kms"):
        answers.append(head["ETag"].strip('"') == _etag(parts))
    if "ChecksumSHA256" in head:
        answers.append(head["ChecksumSHA256"].partition("-")[0] == _checksum(parts))
    return bool(answers) and all(answers)


def _etag(parts: Sequence[Part]) -> str:
    if len(parts) == 1:
        return parts[0].md5.hex()
    whole = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}"


def _checksum(parts: Sequence[Part]) -> str:
    """Return what S3 states, but for the number of parts, which not every store appends."""
    if len(parts) == 1:
        return _base64(parts[0].sha256)
    return _base64(hashlib.sha256(b"".join(part.sha256 for part in parts)).digest())


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _send_whole(target: Target, path: Path, part: Part, sha256: str) -> None:
    client().put_object(
        **target.names(),
        Body=path.read_bytes(),
        Metadata={"sha256": sha256},
        ContentMD5=_base64(part.md5),
        ChecksumSHA256=_base64(part.sha256),
    )


def _send_parts(target: Target, path: Path, parts: Sequence[Part], sha256: str) -> None:
    waiting = _unfinished(target)
    chosen = waiting[0] if waiting else _begin(target, sha256)
    tags = dict(_arrived(target, chosen, parts))
    missing = [part for part in parts if part.number not in tags]
    send = partial(_send_part, target, chosen, path)
    with ThreadPoolExecutor(THREADS) as pool:
        sent = pool.map(send, missing)
        tags |= dict(track(sent, f"upload {path.name}", total=len(parts), initial=len(tags), unit="part"))
    try:
        client().complete_multipart_upload(
            **target.names(), UploadId=chosen, MultipartUpload={"Parts": list(_listed(parts, tags))}
        )
    except ClientError as error:
        if code_of(error) not in GONE:  # gone: another process has completed it; the caller looks
            raise
    for other in waiting[1:]:
        client().abort_multipart_upload(**target.names(), UploadId=other)


def _begin(target: Target, sha256: str) -> str:
    answer = client().create_multipart_upload(**target.names(), Metadata={"sha256": sha256}, ChecksumAlgorithm="SHA256")
    return str(answer["UploadId"])


def _unfinished(target: Target) -> list[str]:
    """Return the uploads of this object that were begun and not completed, oldest first."""
    pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=target.bucket, Prefix=target.key)
    rows = [row for page in pages for row in page.get("Uploads", ()) if row["Key"] == target.key]
    return [str(row["UploadId"]) for row in sorted(rows, key=lambda row: (row["Initiated"], row["UploadId"]))]


def _arrived(target: Target, upload_id: str, parts: Iterable[Part]) -> Iterator[tuple[int, str]]:
    """Yield number and ETag of the parts that S3 has already, with our bytes in them."""
    pages = client().get_paginator("list_parts").paginate(**target.names(), UploadId=upload_id)
    stored = {row["PartNumber"]: row for page in pages for row in page.get("Parts", ())}
    for part in parts:
        row = stored.get(part.number, {})
        same = row.get("ChecksumSHA256") == _base64(part.sha256) or row.get("ETag", "").strip('"') == part.md5.hex()
        if same and row["Size"] == part.size:
            yield part.number, row["ETag"]


def _send_part(target: Target, upload_id: str, path: Path, part: Part) -> tuple[int, str]:
    with path.open("rb") as stream:
        stream.seek(part.start)
        data = stream.read(part.size)
    answer = client().upload_part(
        **target.names(),
        UploadId=upload_id,
        PartNumber=part.number,
        Body=data,
        ContentMD5=_base64(part.md5),
        ChecksumSHA256=_base64(part.sha256),
    )
    return part.number, answer["ETag"]


def _listed(parts: Iterable[Part], tags: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield {"PartNumber": part.number, "ETag": tags[part.number], "ChecksumSHA256": _base64(part.sha256)}
