"""Weights on disk: a folder's safetensors files, one or sharded with an index, as one mapping by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefrestore import artifacts
from prefrestore.errors import UserError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that run code when they are read."""


class WeightFiles(Mapping[str, Tensor]):
    """Reads a tensor from its file when it is asked for; knows all names and shapes without reading any."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places
        self._files = {path: _open(path) for path in set(places.values())}
        for name, path in places.items():
            if name not in self._files[path].keys():  # noqa: SIM118 (the file is no mapping)
                raise UserError(f"{path}: {name} is missing, though the index names it: fetch the file again")

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._places[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape from the file's header."""
        return tuple(self._files[self._places[name]].get_slice(name).get_shape())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged or cut short ({error}): fetch the file again") from None


def open_weights(folder: Path, stem: str = "model") -> WeightFiles:
    """Open ``<stem>.safetensors``, or the shards that ``<stem>.safetensors.index.json`` names.

    Raises:
        UserError: there are none, only pickled ones, or they are damaged or incomplete.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        with _open(single) as file:
            return WeightFiles({str(name): single for name in file.keys()})  # noqa: SIM118 (the file is no mapping)
    if index.is_file():
        return WeightFiles(_indexed(index))
    refuse_pickles(folder)
    raise UserError(f"{folder}: holds no weights ({single.name} is missing): name the folder that holds them")


def _indexed(index: Path) -> dict[str, Path]:
    try:
        named = artifacts.read_json(index)["weight_map"]
        places = {str(name): index.parent / Path(str(file)).name for name, file in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index}: is no index of weights: fetch the file again") from None
    for path in sorted(set(places.values())):
        if not path.is_file():
            raise UserError(f"{path}: is missing, though {index.name} names it: fetch the file")
    return places


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], where: Path) -> None:
    """Raise where a weight is NaN or infinite: pictures made with it would be black or noise, without a word.

    Raises:
        UserError: names the first tensor that holds such a number.
    """
    for name, value in tensors:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{where}: {name} holds numbers that are not finite: save or fetch the weights again")


def refuse_pickles(folder: Path) -> None:
    """Raise where a folder's weights are pickled."""
    found = sorted(path for path in folder.glob("*") if path.suffix in PICKLED)
    if found:
        raise UserError(f"{found[0]}: is pickled, reading it could run foreign code: use weights stored as safetensors")
