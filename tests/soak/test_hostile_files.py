"""Hostile and damaged images, tables and configurations: a value or one line, nothing outside, memory bounded."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prefrestore import configfile
from prefrestore.data.archives import archive_candidates
from prefrestore.data.images import UnreadableError, decode
from prefrestore.data.pair_import import import_pairs
from prefrestore.data.photographs import read_photograph
from prefrestore.data.vote_store import read_shard
from prefrestore.errors import UserError
from support import served
from support.hostile import NAMES, cases, damaged, twisted, watched
from support.soak import scaled
from support.votes import vote

Tell = Callable[[str], None]
PIXELS = 200_000
MEMORY_MIB = 512.0
"""Far less than what any of the bombs unpacks to."""


def pictures() -> dict[str, bytes]:
    """Return sound small files of every format and depth that is read."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 2**16, (20, 20), dtype=np.uint16))
    made = {
        "png": (rgb, {}), "alpha.png": (rgba, {}), "jpg": (rgb, {"exif": b"Exif\0\0MM\0*" + bytes(20)}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}), "webp": (rgba, {}), "gif": (rgb.convert("P"), {}), "bmp": (rgb, {}),
        "tiff": (rgb, {"compression": "tiff_lzw"}), "deep.tiff": (deep, {}), "deep.png": (deep, {}), "ppm": (rgb, {}),
    }  # fmt: skip
    files = {}
    for name, (image, options) in made.items():
        stream = io.BytesIO()
        image.save(stream, Image.registered_extensions()[f".{name.split('.')[-1]}"], **options)
        files[name] = stream.getvalue()
    return files


def bombs() -> list[bytes]:
    """Return small files that promise enormous pictures."""
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    sizes = [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (1, 2**31 - 1)]
    return [
        *(head + struct.pack(">II", *size) + b"\x08\x02\0\0\0" + bytes(64) for size in sizes),
        *(b"P6\n%d %d\n255\n" % size + bytes(64) for size in sizes),
        *(b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(64) for _ in range(1)),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 10**6, 10**6, 1, 24, 0, 0, 0, 0, 0, 0),
        b"", b"\0" * 100_000, pickle.dumps({"a": 1}), b"<svg onload='x'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ]  # fmt: skip


def test_images(tell: Tell, tmp_path: Path) -> None:
    known, read = list(pictures().values()), 0
    for file in known:
        assert decode(file).ndim == read_photograph(file).pixels.ndim == 3
    with watched("images", tmp_path) as tally:
        files = [
            *bombs(),
            *(damaged(known[int(g.integers(len(known)))], g) for g in cases("images", scaled(150, 4000))),
        ]
        for data in files:
            pixels = tally.attempt(lambda data=data: decode(data, PIXELS), UnreadableError)
            photograph = tally.attempt(lambda data=data: read_photograph(data), UnreadableError)
            if pixels is not None:
                read += 1
                assert pixels.dtype == np.uint8
                assert pixels.shape[0] * pixels.shape[1] <= PIXELS
            assert photograph is None or photograph.pixels.shape[2] == 3
    tell(tally.line())
    assert tally.outside == []
    assert tally.peak_mib < MEMORY_MIB + 300  # read_photograph takes up to 100 million pixels
    assert read > 0


def _pair_rows(folder: Path) -> list[dict[str, Any]]:
    (folder / "b.png").write_bytes(served.png(seed=1))
    cells = [served.png(seed=0), "b.png"]
    import base64

    text = base64.b64encode(cells[0]).decode()
    return [{"lq": text, "chosen": "b.png", "rejected": text, "caption": "a face"} for _ in range(3)]


def _table(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in (("a.png", served.png()), ("a.txt", b"a face"), ("../b.png", served.png()), ("c.png", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("d.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return stream.getvalue()


def test_shards_of_images(tell: Tell, tmp_path: Path) -> None:
    """What a stranger's data set is made of: rows and members are taken, or set aside with a reason."""
    files = {".parquet": _table([{"image": served.png(seed=n), "text": "x", "split": "train"} for n in range(4)])}
    files |= {".tar": _tar()}
    with watched("shards of images", tmp_path) as tally:
        for number, generator in enumerate(cases("shards", scaled(60, 1500))):
            suffix = (".parquet", ".tar")[number % 2]
            path = tmp_path / f"x{suffix}"
            path.write_bytes(damaged(files[suffix], generator) if number > 1 else files[suffix])
            found = tally.attempt(lambda path=path: list(archive_candidates(path, path.name, by_name=True)), UserError)
            for row in found or ():
                assert isinstance(row.payload, bytes)
                assert "/" not in row.id
                assert not row.id.startswith(".")
    tell(tally.line())
    assert tally.outside == []
    assert tally.peak_mib < MEMORY_MIB


def test_tables_of_pairs(tell: Tell, tmp_path: Path) -> None:
    """What is imported lands in the store; what the rows name outside the folder is not read."""
    (tmp_path / "secret.png").write_bytes(served.png(seed=9))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "fifo").mkdir()
    rows = _pair_rows(folder)
    deep = [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe" * 50, b'{"lq": 1' + b"0" * 5000 + b"}", b""]
    with watched("tables of pairs", folder, tmp_path / "store") as tally:
        for number, generator in enumerate(cases("pairs", scaled(60, 1500))):
            changed: list[Any] = twisted(rows, generator) if number > 1 else rows
            if number == 2:
                changed = [rows[0] | {"chosen": name} for name in (*NAMES, "link.png", "../secret.png", "fifo")]
            lines = "\n".join(map(json.dumps, changed if isinstance(changed, list) else [changed])).encode()
            path = folder / ("x.parquet" if number % 3 == 1 else "x.jsonl")
            data = _table(rows) if number % 3 == 1 else lines
            data = deep[number - 3] if 3 <= number < 3 + len(deep) else data
            path.write_bytes(damaged(data, generator) if number > 10 and number % 2 else data)
            tally.attempt(lambda path=path: import_pairs(path, tmp_path / "store", "x"), UserError)
    tell(tally.line())
    secret = hashlib.sha256(served.png(seed=9)).hexdigest()
    kept = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "store").rglob("*.png")]
    assert kept
    assert secret not in kept
    assert [path for path in tally.outside if "/proc" not in path] == []
    assert tally.peak_mib < MEMORY_MIB


def test_shards_of_votes(tell: Tell, tmp_path: Path) -> None:
    """The name's digest is right, so only the reader stands between a forged shard and the trainer."""
    rows = [asdict(vote(number)) for number in range(3)]
    times = ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "x", ""]
    forged = [[rows[0] | {"time": time}] for time in times]
    with watched("shards of votes", tmp_path) as tally:
        for number, generator in enumerate(cases("votes", scaled(80, 1500))):
            if number < len(forged):
                data = _table(forged[number])
            elif number % 2:
                data = damaged(_table(rows), generator)
            else:
                try:
                    data = _table([twisted(row, generator) for row in rows])
                except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
                    continue  # no table can hold that
            name = f"part-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
            found = tally.attempt(lambda data=data, name=name: read_shard(data, name))
            assert found is not None
            assert all("\n" not in row.reason for row in found[1])
    tell(tally.line())
    assert tally.outside == []
    assert tally.peak_mib < MEMORY_MIB


YAMLS = (
    "a: 2001-99-99\n", "a: " + "[" * 5000 + "]" * 5000, "a: !!timestamp x\n", "a: !!int x\n", "a: !!float x\n",
    "a: " + "9" * 5000, "a: &x [*x]\n", "!!python/object/apply:os.system ['touch owned']\n", "a: !!set {b, c}\n",
    "a: !!binary x\n", "? {a: b}\n: c\n", "%YAML 9.9\n---\na: 1\n", "--- 1\n--- 2\n", "a: 1e999999\n", "\ufeffa: 1",
)  # fmt: skip


def _references(width: int, depth: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines)


def test_configurations(repository: Path, tell: Tell, tmp_path: Path) -> None:
    text = (repository / "presets" / "smoke.yaml").read_text(encoding="utf-8")
    known = yaml.safe_load(text)
    path = tmp_path / "params.yaml"
    texts = [*(one.encode() for one in (*YAMLS, _references(9, 12), _references(2, 40))), text.encode()]
    for number, generator in enumerate(cases("configurations", scaled(40, 600))):
        twist = yaml.safe_dump(twisted(known, generator), allow_unicode=True)
        texts.append(damaged(text.encode(), generator) if number % 2 else twist.encode("utf-8", "surrogatepass"))
    with watched("configurations", tmp_path) as tally:
        for data in texts:
            path.write_bytes(data)
            tally.attempt(lambda: configfile.load(path), UserError)
    tell(tally.line())
    assert tally.taken > 0
    assert tally.outside == []
    assert tally.peak_mib < MEMORY_MIB
    assert [one.name for one in tmp_path.iterdir()] == ["params.yaml"]


@settings(max_examples=scaled(50, 1000), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("&*a:b-[]{},!#|>'\"\n \t01.e?%<"), max_size=60))
def test_a_text_made_of_yaml_marks_is_read_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        configfile.load(path)
    assert "\n" not in str(caught.value)
