"""Hostile and damaged model folders and releases: they restore or are refused in one line, memory bounded."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry.loader import load, locate, resolve
from prefrestore.registry.stores import FolderStore
from prefrestore.runtime import seeding
from support import served
from support.hostile import cases, damaged, twisted, watched
from support.soak import scaled

Tell = Callable[[str], None]
MEMORY_MIB = 512.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder of artifacts with base and policy."""
    folder = tmp_path_factory.mktemp("model")
    served.save_base(folder / "base", repository)
    served.save_adapter(folder / "policy", folder / "base", 1)
    return folder


def _restored(folder: Path) -> np.ndarray:
    """Load a model as the program does, and let it restore."""
    pipeline = load(locate(resolve(str(folder), "")))
    return np.asarray(pipeline(Image.open(io.BytesIO(served.png())), "", 0).images[0])


def _with_header(data: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length])), allow_nan=True).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _filled(data: bytes, value: float) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return data[: 8 + length] + np.full((len(data) - 8 - length) // 4, value, np.float32).tobytes()


def _spoil(folder: Path, generator: np.random.Generator) -> str:
    """Do one thing to a model's folder, and say what."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".jinja"))
    path = files[int(generator.integers(len(files)))]
    data, weights = path.read_bytes(), path.suffix == ".safetensors"
    kind = ["damaged", "twisted", "pickle", "link", "gone", "header", "length", "nan", "infinite"][
        int(generator.integers(9 if weights else 5))
    ]
    path.unlink()
    if kind == "damaged":
        path.write_bytes(damaged(data, generator))
    elif kind == "pickle":
        path.with_suffix(".bin").write_bytes(pickle.dumps(Path("owned").touch))
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "length":
        path.write_bytes(struct.pack("<Q", int(generator.choice([2**63 - 1, 2**40, 0, 99]))) + data[8:])
    elif kind in ("nan", "infinite"):
        path.write_bytes(_filled(data, float("nan" if kind == "nan" else "inf")))
    elif kind in ("header", "twisted"):
        change = lambda value: twisted(value, generator)  # noqa: E731
        path.write_bytes(_with_header(data, change) if weights else _json(data, change))
    _sign(folder)
    return f"{kind}: {path.relative_to(folder)}"


def _sign(folder: Path) -> None:
    """Let the adapter name the base as it is now: who spoils a base on purpose can do that too."""
    card = folder / "policy" / "policy.json"
    if card.is_file() and '"base_digest"' in card.read_text(errors="replace") and not card.is_symlink():
        card.write_text(json.dumps({"base_digest": artifacts.digest(folder / "base")}))


def _json(data: bytes, change: Callable[[Any], Any]) -> bytes:
    try:
        return json.dumps(change(json.loads(data))).encode()
    except ValueError:
        return b"[" * 100_000


def test_model_folders(model: Path, tell: Tell, tmp_path: Path) -> None:
    """A spoilt model is refused, or restores: what was changed was a number that could have been another."""
    sound, wrong = _restored(model), list[str]()
    with watched("model folders", tmp_path, model) as tally:
        for number, generator in enumerate(cases("models", scaled(25, 400))):
            folder = tmp_path / "spoilt"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(model, folder)
            what = _spoil(folder, generator)
            print(number, what, flush=True)
            try:
                found = tally.attempt(lambda folder=folder: _restored(folder), UserError)
            except Exception as error:  # told with its case
                wrong.append(f"{number}: {what}: {type(error).__name__} {error}")
                continue
            never = what.split(":")[0] in ("pickle", "length", "nan", "infinite")
            if found is not None and (never or found.shape != sound.shape):
                wrong.append(f"{number}: {what}: was taken")
    tell(tally.line())
    assert "\n".join(wrong) == ""
    assert set(tally.outside) == set()
    assert tally.peak_mib < MEMORY_MIB
    assert not list(Path.cwd().glob("owned"))


SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json", "model_index.json")
GONE = object()
VALUES = (GONE, 20_000, 1_000_000, -1, 0, 1.5, "x", [7], {"a": 1})


def _places(value: Any, *place: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield where values stand in JSON-like data; of a list the first three."""
    named = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in named:
        yield *place, key
        yield from _places(one, *place, key)


def _with(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    """Return a copy of JSON-like data with another value somewhere in it, or without it."""
    whole = json.loads(json.dumps(value))
    holder = whole
    for key in place[:-1]:
        holder = holder[key]
    if new is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = new
    return whole


def test_settings_of_models_one_by_one(model: Path, tell: Tell, tmp_path: Path) -> None:
    """Each value of each settings file is another: sizes that cost memory, kinds that no program expects."""
    files = sorted(path for path in model.rglob("*.json") if path.name in SETTINGS)
    changes = [
        (file.relative_to(model), place, new)
        for file in files
        for place in _places(json.loads(file.read_text()))
        for new in VALUES
    ]
    assert len(changes) > 1000
    chosen = sorted(seeding.rng("hostile", "settings").permutation(len(changes))[: scaled(40, len(changes))])
    sound, wrong, folder = _restored(model), list[str](), tmp_path / "spoilt"
    with watched("settings of models", tmp_path, model) as tally:
        for file, place, new in (changes[number] for number in chosen):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(model, folder)
            (folder / file).write_text(json.dumps(_with(json.loads((folder / file).read_text()), place, new)))
            _sign(folder)
            what = f"{file} {place} {'gone' if new is GONE else new!r}"
            print(what, flush=True)
            try:
                found = tally.attempt(lambda: _restored(folder), UserError)
            except Exception as error:  # told with its case
                wrong.append(f"{what}: {type(error).__name__} {error}")
                continue
            if found is not None and found.shape != sound.shape:
                wrong.append(f"{what}: restored {found.shape}")
    tell(tally.line())
    assert "\n".join(wrong) == ""
    assert set(tally.outside) == set()
    assert tally.peak_mib < MEMORY_MIB


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("base/generator/diffusion_pytorch_model.safetensors", lambda data: _filled(data, float("nan")), "not finite"),
        ("policy/adapter_model.safetensors", lambda data: _filled(data, float("inf")), "not finite"),
        ("base/generator/config.json", lambda data: data.replace(b'"layers": 2', b'"layers": 2147483647'), "any model"),
        ("base/generator/config.json", lambda data: data.replace(b'"layers": 2', b'"layers": 1'), "call for none"),
        ("base/codec/config.json", lambda data: data.replace(b"64", b"64000000000"), "any model"),
        ("base/codec/config.json", lambda _: b"[" * 100_000, "damaged"),
        ("base/integrator/config.json", lambda _: b'{"model_type": "qwen3"}', "settings call for"),
        ("base/integrator/config.json", None, "settings call for"),
        ("base/connectors/config.json", lambda data: data.replace(b'grid": 3', b'grid": 20000'), "settings call for"),
        ("base/generator/config.json", lambda data: data.replace(b'latent_size": 8', b'latent_size": 20000'), "pixels"),
        ("base/generator/config.json", lambda data: data.replace(b'latent_size": 8', b'latent_size": 6'), "broadcast"),
        ("base/codec/config.json", lambda data: data.replace(b'factor": 1.0', b'factor": "x"'), "no restorer can be"),
        ("base/codec/config.json", lambda data: data.replace(b'factor": 1.0', b'factor": NaN'), "is nan, no number"),
        ("base/codec/config.json", lambda data: data.replace(b" [],", b" []," * 1000, 1), "lists more than any model"),
        ("base/image_tokenizer/config.json", lambda data: data.replace(b"-1", b"20000"), "feature_layer' is 20000"),
        ("base/integrator/config.json", lambda data: data.replace(b'tag_id": 300', b'tag_id": 3000'), "vocabulary of"),
        ("policy/adapter_config.json", lambda data: data.replace(b'"r": 4', b'"r": 1000000'), "ask for rank 1000000"),
        ("policy/adapter_config.json", lambda data: data.replace(b'_pattern": {}', b'_pattern": 7'), "does not fit"),
        ("base/model_index.json", lambda data: data.replace(b'_steps": 4', b'_steps": 0'), "sampler_steps is 0"),
        ("base/model_index.json", lambda data: data.replace(b"1.0", b'"much"'), "guidance is 'much'"),
        ("base/text_tokenizer/tokenizer_config.json", lambda _: b"{}", "text_tokenizer"),
        ("policy/policy.json", lambda _: b"{", "policy.json: is damaged"),
    ],
)
def test_what_no_model_brings(
    file: str, change: Callable[[bytes], bytes] | None, words: str, model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    before = (folder / file).read_bytes()
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change(before))
        assert (folder / file).read_bytes() != before
    _sign(folder)
    with watched(file, folder) as tally, pytest.raises(UserError, match=words) as caught:
        _restored(folder)
    assert tally.peak_mib < MEMORY_MIB
    assert "\n" not in str(caught.value)


def test_releases_that_name_files_elsewhere(model: Path, tell: Tell, tmp_path: Path) -> None:
    """A manifest is what a release says of itself; its digest is right here, because its maker can compute it."""
    store = FolderStore(tmp_path / "releases")
    digest, _ = store.put({"base": model / "base", "policy": model / "policy"})
    manifest = json.loads((store.root / digest / "manifest.json").read_text())
    with watched("releases", tmp_path, model) as tally:
        for generator in cases("releases", scaled(25, 300)):
            changed = twisted(manifest, generator)
            data = json.dumps(changed, sort_keys=True, indent=2).encode() + b"\n"
            name = hashlib.sha256(data).hexdigest()
            target = Path(shutil.copytree(store.root / digest, store.root / name, dirs_exist_ok=True))
            (target / "manifest.json").write_bytes(data)
            tally.attempt(lambda name=name: store.fetch(name), UserError)
            shutil.rmtree(target)
    tell(tally.line())
    assert tally.outside == []
