"""Pools of nodes: what a person calls them, and what Kubernetes needs to find them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from prefrestore import configfile
from prefrestore.config import Section
from prefrestore.errors import UserError

MOUNTED = Path("/etc/prefrestore/pools.yaml")
OWN = Path(__file__).with_name("pools.yaml")
YES = frozenset({"yes", "true", "1"})
NO = frozenset({"no", "false", "0", ""})


class Place(Section):
    """Where in a cluster."""

    node_selector: dict[str, str]
    tolerations: list[dict[str, str | int]]


class Pool(Place):
    """Nodes of one kind."""

    accelerator: str = Field(description="resource name of the accelerator")
    max_count: Annotated[int, Field(ge=0)] = Field(description="accelerators of the largest node")
    spot: Place | None = Field(description="the same kind as preemptible nodes; null: there are none")


@dataclass(frozen=True)
class Request:
    """Accelerators asked for, and where."""

    accelerator: str
    count: int
    node_selector: dict[str, str]
    tolerations: list[dict[str, str | int]]


def choose(name: str, count: str, spot: str, file: Path | None = None) -> Request:
    """Return what to ask of Kubernetes.

    Raises:
        UserError: no such pool, no number, more than a node has, or no spot nodes.
    """
    path = file or (MOUNTED if MOUNTED.is_file() else OWN)
    table = configfile.read_yaml(path)
    if name not in table:
        raise UserError(f"gpu_pool: there is no pool {name}: choose from {', '.join(sorted(table))}")
    pool = configfile.parse(Pool, table[name], str(path), name=name)
    if not count.strip().isdecimal():
        raise UserError(f"gpu_count: {count!r} is no number: give 0 to {pool.max_count}")
    number = int(count)
    if number > pool.max_count:
        raise UserError(f"gpu_count: a node of pool {name} has {pool.max_count}, not {number}: lower it")
    wanted = spot.strip().lower()
    if wanted not in YES | NO:
        raise UserError(f"spot: {spot!r} is neither yes nor no")
    if wanted in YES and pool.spot is None:
        raise UserError(f"spot: pool {name} has no spot nodes: say no, or choose another pool")
    place: Place = pool.spot if wanted in YES and pool.spot else pool
    return Request(pool.accelerator, number, place.node_selector, place.tolerations)
