"""Files that somebody wrote to do harm, or that were damaged; and a watch over what reading them does."""

from __future__ import annotations

import os
import re
import resource
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from prefrestore.runtime import seeding

T = TypeVar("T")
READ_BY_LIBRARIES = tuple(
    str(Path(name).resolve()) for name in (sys.prefix, sys.base_prefix, "/usr", "/proc", "/sys", "/dev", "/etc")
)
"""Where programs look by themselves: their own files, the machine, its time zone and certificates."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
INTERESTING = (
    0,
    1,
    -1,
    2**31 - 1,
    -(2**31),
    2**63 - 1,
    10**30,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    None,
    True,
    [],
    {},
)
NAMES = ("../../secret", "/etc/passwd", "a/../../b", "..\\..\\b", "con\0.json", "\ud800", "." * 300, "~root/x")


@dataclass
class Tally:
    """What a run of cases came to."""

    name: str
    refused: int = 0
    taken: int = 0
    outside: list[str] = field(default_factory=list)
    peak_mib: float = 0.0

    def attempt(self, action: Callable[[], T], *refusals: type[Exception]) -> T | None:
        """Do it; None where it was refused by an error whose message is one line. Any other error passes on."""
        try:
            result = action()
        except refusals as error:
            message = str(error)
        else:
            self.taken += 1
            return result
        assert re.fullmatch(".{1,1000}", message), message
        self.refused += 1
        return None

    def line(self) -> str:
        """Return the counts."""
        return (
            f"hostile {self.name}: {self.refused + self.taken} cases, {self.refused} refused in a line, "
            f"{self.taken} read, 0 crashes, {len(self.outside)} accesses outside, {self.peak_mib:.0f} MiB more at most"
        )


_watching: list[tuple[tuple[str, ...], list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watching or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    named, flags = os.fsdecode(arguments[0]), arguments[2] or 0
    if arguments[1] is None and not named.startswith("/"):
        return  # os.open beside an open folder, as shutil does it
    path = os.path.realpath(named)
    inside, found = _watching[-1]
    written = bool(flags & WRITES)
    allowed = inside if written else (*inside, *READ_BY_LIBRARIES)
    if not path.startswith((*allowed, "/dev/null")):
        found.append(f"{'written' if written else 'read'}: {path}")


sys.addaudithook(_hook)


SPACE_MIB = 4096.0
"""Address space that may be asked for: what goes far beyond what is tested must not take the machine with it."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Bound the address space, and fail where half of it was asked for at some time: it need not have been used."""
    own, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = _status_mib("VmPeak"), _status_mib("VmSize")
    bound = int((before[1] + SPACE_MIB) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (bound if own == resource.RLIM_INFINITY else min(bound, own), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (own, hard))
    asked = _status_mib("VmPeak")
    assert asked <= max(before[0], before[1] + SPACE_MIB / 2), f"{asked - before[1]:.0f} MiB were asked for"


@contextmanager
def watched(name: str, *inside: Path) -> Iterator[Tally]:
    """Note files that are opened outside some folders, and how far memory rises, which is bounded."""
    tally = Tally(name)
    own = (str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[2] / "presets"))
    places = (*(str(path.resolve()) for path in inside), *own, tempfile.gettempdir() + "/tmp")
    before = _peak_mib(reset=True)
    _watching.append((places, tally.outside))
    try:
        with _bounded():
            yield tally
    finally:
        _watching.pop()
        tally.peak_mib = max(0.0, _peak_mib() - before)


def _peak_mib(*, reset: bool = False) -> float:
    """Return the most memory since the last reset, or after a reset what is in use now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_mib("VmHWM")


def _status_mib(row: str) -> float:
    """Return a size of this process, as Linux knows it."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return float(rows[row].split()[0]) / 1024


def cases(name: str, count: int) -> Iterator[np.random.Generator]:
    """Yield a generator for each case."""
    return (seeding.rng("hostile", name, number) for number in range(count))


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Return bytes with one kind of damage: flipped, cut, doubled, filled, or numbers made large."""
    whole, size = bytearray(data), len(data)
    if not size:
        return generator.bytes(50)
    at = int(generator.integers(size if generator.random() < 0.5 else min(size, 96)))
    match int(generator.integers(6)):
        case 0:
            for _ in range(int(generator.integers(1, 9))):
                whole[int(generator.integers(size))] ^= 1 << int(generator.integers(8))
        case 1:
            return bytes(whole[:at])
        case 2:
            whole[at:at] = whole[at : at + int(generator.integers(1, 200))]
        case 3:
            length = int(generator.integers(1, 64))
            whole[at : at + length] = bytes([int(generator.choice([0, 255, 127, 34, 10]))]) * length
        case 4:
            whole[at : at + 8] = struct.pack("<q", int(generator.choice([2**31, 2**40, 2**62, -1])))
        case _:
            whole[at : at + int(generator.integers(1, 40))] = generator.bytes(int(generator.integers(1, 40)))
    return bytes(whole)


def twisted(value: Any, generator: np.random.Generator) -> Any:
    """Return JSON-like data with one value, somewhere in it, replaced, removed or renamed."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        name = list(value)[int(generator.integers(len(value)))]
        rest = {key: one for key, one in value.items() if key != name}
        match int(generator.integers(8)):
            case 0:
                return rest
            case 1:
                return rest | {str(generator.choice(np.array(NAMES, object))): value[name]}
            case _:
                return {key: twisted(one, generator) if key == name else one for key, one in value.items()}
    if isinstance(value, list) and value and generator.random() < 0.8:
        at = int(generator.integers(len(value)))
        return [*value[:at], twisted(value[at], generator), *value[at + 1 :]]
    choices: tuple[Any, ...] = (*INTERESTING, *NAMES, [[value]], {"x": value})
    return choices[int(generator.integers(len(choices)))]
