"""Two versions of an untrained restorer in a registry, and the predictor that serves them as a process."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from prefrestore import artifacts, configfile
from prefrestore.config import LoraConfig
from prefrestore.data.pairs import PairSet
from prefrestore.models.adapters import add_roles, role_tensors, save_policy
from prefrestore.models.codec import build_codec, start_linear
from prefrestore.models.tokenizer import build_tokenizer
from prefrestore.registry import promotion
from prefrestore.registry.audit import Audit, Decision
from prefrestore.registry.stores import FolderStore
from prefrestore.registry.versions import Evidence, Registry
from prefrestore.sft.pretrain import build_pipeline

MODEL = "restorer"
SIZE = 32
DECISION = Decision("tester", "2026-01-01T00:00:00+00:00", "because")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def save_base(folder: Path, repository: Path) -> None:
    """Write an untrained restorer at smoke's sizes."""
    config = configfile.load(repository / "presets" / "smoke.yaml")
    pictures = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    codec = build_codec(config.train_codec)
    start_linear(codec, torch.from_numpy(pictures).movedim(-1, 1).float() / 255)
    pairs = PairSet(tuple("abcdefgh"), ("",) * 8, pictures, pictures[:, None], (), np.zeros((8, 68, 2), np.float32))
    build_pipeline(config.pretrain, codec, build_tokenizer(config.train_codec.tokenizer), pairs).save_pretrained(folder)


def save_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write adapters that say something, so that versions answer differently."""
    from prefrestore.models.pipeline import PrefRestorePipeline

    pipeline = PrefRestorePipeline.from_pretrained(base)
    lora = LoraConfig(rank=4, alpha=64)
    add_roles(pipeline, lora, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator) for name, value in role_tensors(pipeline, "policy").items()
    }
    folder.mkdir()
    save_policy(folder, tensors, lora, artifacts.digest(base))


def fill_registry(root: Path, repository: Path, empty_registry: bytes) -> Path:
    """Make a registry in ``root`` with two versions of a model, the first of them champion."""
    (root / "mlflow.db").write_bytes(empty_registry)
    torch.manual_seed(0)
    save_base(root / "base", repository)
    place = desk(root)
    (root / "verdict").mkdir()
    (root / "verdict" / "verdict.json").write_text('{"passed": true}')
    for number in (1, 2):
        save_adapter(root / f"policy-{number}", root / "base", number)
        parts = {"base": root / "base", "policy": root / f"policy-{number}", "verdict": root / "verdict"}
        digest, source = FolderStore(root / "releases").put(parts)
        place.registry.register(MODEL, Evidence(digest, {}, {}), source)
    promotion.promote(place, 1, DECISION)
    return root


def desk(root: Path) -> promotion.Desk:
    """Return where promotions of the registry in ``root`` are decided."""
    return promotion.Desk(Registry(registry_at(root)), Audit(FolderStore(root / "releases"), MODEL), MODEL)


def registry_at(root: Path) -> str:
    """Return the registry's address."""
    return f"sqlite:///{root / 'mlflow.db'}"


@dataclass(frozen=True)
class Server:
    """A predictor process, where it answers, and what it has said."""

    url: str
    process: subprocess.Popen[str]
    said: list[str]

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON."""
        return self.send(path, None)

    def send(self, path: str, body: bytes | None) -> tuple[int, Any]:
        """Post, or get where there is no body."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def infer(self, body: bytes) -> tuple[int, Any]:
        """Ask for a restoration."""
        return self.send(f"/v2/models/{MODEL}/infer", body)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return Prometheus' numbers by name and labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return {(row.name, *row.labels.values()): row.value for family in families for row in family.samples}


@contextmanager
def predictor(root: Path, *options: str) -> Iterator[Server]:
    """Run ``prefrestore serve`` with the champion of the registry in ``root``."""
    arguments = [f"models:/{MODEL}@champion", "--registry", registry_at(root), "--port", "0", *options]
    with subprocess.Popen(
        [sys.executable, "-m", "prefrestore", "serve", *arguments], cwd=root, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        found, said = None, []
        for line in process.stderr:
            said.append(line)
            if found := ADDRESS.search(line):
                break
        if found is None:
            raise RuntimeError(f"the predictor did not start: {said}")
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            yield Server(found[0], process, said)
        finally:
            process.kill()
            process.wait()
            reader.join()


def png(size: tuple[int, int] = (40, 40), seed: int = 0) -> bytes:
    """Return a picture of noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tensor(name: str, value: Any, datatype: str = "BYTES", shape: Any = (1,)) -> dict[str, Any]:
    """Return an input of one element."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": [value]}


def request(image: bytes, *more: dict[str, Any], **fields: Any) -> bytes:
    """Return a request's body."""
    inputs = [tensor("image", base64.b64encode(image).decode()), *more]
    return json.dumps({"inputs": inputs, **fields}).encode()
