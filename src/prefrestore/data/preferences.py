"""Judgements on pairs of restorations: the record, its checks, and how far judges agree."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest

from prefrestore import artifacts
from prefrestore.data.tables import Rejection

CANDIDATES, INPUTS = "candidates.parquet", "inputs.parquet"
"""Files of the artifact ``candidates``: the restorations, and the LQ image and text of each group of them."""

CHOICES = ("a", "b", "tie", "both_bad")
UNDO = "undo"
"""In place of a choice: takes back every earlier answer of this annotator to this showing. A store only grows."""

SOURCES = ("human", "simulated", "import")
SIMULATED_TIME = "2000-01-01T00:00:00Z"
"""The time of every simulated judgement: nothing volatile may enter an artifact."""

CLOCK_SKEW = timedelta(minutes=5)
SIDE_BIAS_VOTES, SIDE_BIAS_LEVEL = 20, 1e-4


@dataclass(frozen=True)
class Judgement:
    """One judgement on one pair.

    Attributes:
        pair_id: what :func:`pair_id` gives; the same whichever candidate was shown left.
        lq_id: LQ sample, ``face/variant``.
        lq_digest: sha256 of the LQ pixels.
        digest_a: sha256 of the PNG bytes of the candidate shown as a (left).
        model_a: short digest of the model that drew it.
        seed_a: seed it was drawn with.
        choice: ``a``, ``b``, ``tie`` or ``both_bad``; ``undo`` takes an answer back.
        annotator: pseudonym.
        repeat: 0, or n for the n-th hidden repeat of the pair to the same annotator.
        source: ``human``, ``simulated`` or ``import``.
        instruction: the question that was asked.
        time: ISO 8601, UTC, ends in Z.
        tool_version: version of the program that took the judgement.
    """

    pair_id: str
    lq_id: str
    lq_digest: str
    digest_a: str
    digest_b: str
    model_a: str
    model_b: str
    seed_a: int
    seed_b: int
    choice: str
    annotator: str
    repeat: int
    source: str
    instruction: str
    time: str
    tool_version: str


SCHEMA = pa.schema([(field.name, pa.int64() if field.type == "int" else pa.string()) for field in fields(Judgement)])


@dataclass(frozen=True)
class Checked:
    """What passed and what did not."""

    kept: tuple[Judgement, ...]
    rejected: tuple[Rejection, ...]


def pair_id(lq_digest: str, digest_a: str, digest_b: str) -> str:
    """Return the name of a pair, the same for both orders of showing it."""
    text = "\0".join((lq_digest, *sorted((digest_a, digest_b))))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pixel_digest(image: np.ndarray) -> str:
    """Return the sha256 of an image's shape and pixels [H, W, 3] uint8."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def judgement_id(judgement: Judgement) -> str:
    """Return a digest of the whole record: equal records are one judgement that arrived twice."""
    return hashlib.sha256(artifacts.canonical_json(asdict(judgement)).encode()).hexdigest()[:16]


def parse_judgement(row: Mapping[str, Any]) -> Judgement:
    """Build a judgement from a row of any source.

    Raises:
        ValueError: a column is missing or has another type, or a value is outside its set.
    """
    values: dict[str, Any] = {}
    for field in fields(Judgement):
        value = row.get(field.name)
        kind: type = int if field.type == "int" else str
        if type(value) is not kind:
            raise ValueError(f"{field.name} must be {kind.__name__}, found {value!r:.40}")
        values[field.name] = value
    judgement = Judgement(**values)
    for name, allowed in (("choice", (*CHOICES, UNDO)), ("source", SOURCES)):
        if values[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {values[name]!r:.40}")
    if judgement.repeat < 0:
        raise ValueError(f"repeat must not be negative, found {judgement.repeat}")
    if judgement.pair_id != pair_id(judgement.lq_digest, judgement.digest_a, judgement.digest_b):
        raise ValueError(f"pair_id {judgement.pair_id!r:.40} does not belong to these images")
    parse_time(judgement.time)
    return judgement


def settle(judgements: Iterable[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    """Return the answers that stand, and the records that took others back.

    A record ``undo`` takes back what the same annotator answered to the same showing at its time or before.
    """
    rows = list(judgements)
    undos = [row for row in rows if row.choice == UNDO]
    last: dict[tuple[str, str, int], datetime] = {}
    for undo in undos:
        time = parse_time(undo.time)
        last[showing(undo)] = max(last.get(showing(undo), time), time)
    standing = [row for row in rows if showing(row) not in last or parse_time(row.time) > last[showing(row)]]
    return [row for row in standing if row.choice != UNDO], undos


def parse_time(text: str) -> datetime:
    """Return a UTC time from ISO 8601 text that names its zone.

    Raises:
        ValueError: it is no such text.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"time must name its zone, found {text!r:.40}")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"time must lie between the years 1 and 9999, found {text!r:.40}") from None


def check_judgements(
    judgements: Iterable[Judgement], candidates: Collection[tuple[str, str]], now: datetime | None = None
) -> Checked:
    """Keep what can be trusted, in an order that does not depend on the order of arrival.

    Args:
        judgements: any number, duplicates included.
        candidates: LQ id and digest of every known candidate.
        now: judgements later than this plus five minutes are refused; None: no clock is looked at.
    """
    unique = {judgement_id(judgement): judgement for judgement in judgements}
    ordered = dict(sorted(unique.items(), key=lambda item: (item[1].pair_id, item[1].annotator, item[0])))
    reasons = {key: _reason_against(judgement, candidates, now) for key, judgement in ordered.items()}
    contradictory, doubled = _contradictions(ordered), _doubles(ordered)
    biased = side_biased(ordered.values())
    for key, judgement in ordered.items():
        if key in contradictory:
            reasons[key] = f"{judgement.annotator} gave several answers for one showing of this pair"
        elif key in doubled:
            reasons[key] = f"{judgement.annotator} gave this answer for this showing before"
        elif judgement.annotator in biased:
            reasons[key] = f"{judgement.annotator} presses one side whatever is shown"
    return Checked(
        tuple(judgement for key, judgement in ordered.items() if not reasons[key]),
        tuple(Rejection(key, reason) for key in ordered if (reason := reasons[key])),
    )


def _reason_against(judgement: Judgement, candidates: Collection[tuple[str, str]], now: datetime | None) -> str:
    for digest in (judgement.digest_a, judgement.digest_b):
        if (judgement.lq_id, digest) not in candidates:
            return f"{digest[:12]} is not among the candidates of {judgement.lq_id}"
    if judgement.digest_a == judgement.digest_b:
        return "both candidates are one image"
    if now is not None and parse_time(judgement.time) > now + CLOCK_SKEW:
        return f"its time {judgement.time} lies in the future"
    return ""


def _contradictions(judgements: Mapping[str, Judgement]) -> set[str]:
    showings: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for judgement in judgements.values():
        showings[showing(judgement)].add(canonical_choice(judgement))
    return {key for key, judgement in judgements.items() if len(showings[showing(judgement)]) > 1}


def _doubles(judgements: Mapping[str, Judgement]) -> set[str]:
    first: dict[tuple[str, str, int], tuple[str, str]] = {}
    for key, judgement in judgements.items():
        asked = showing(judgement)
        first[asked] = min(first.get(asked, (judgement.time, key)), (judgement.time, key))
    return {key for key, judgement in judgements.items() if first[showing(judgement)][1] != key}


def showing(judgement: Judgement) -> tuple[str, str, int]:
    """Return what was asked of whom: pair, annotator and repeat."""
    return judgement.pair_id, judgement.annotator, judgement.repeat


def canonical_choice(judgement: Judgement) -> str:
    """Return the choice whatever the side: ``first`` or ``second`` by digest, ``tie`` or ``both_bad``."""
    if judgement.choice not in ("a", "b"):
        return judgement.choice
    return "first" if (judgement.choice == "a") == (judgement.digest_a < judgement.digest_b) else "second"


def side_biased(judgements: Iterable[Judgement]) -> set[str]:
    """Return human annotators who press one side far more often than chance (exact binomial test, 20 votes or more)."""
    sides: dict[str, Counter[str]] = defaultdict(Counter)
    for judgement in judgements:
        if judgement.source == "human" and judgement.choice in ("a", "b"):
            sides[judgement.annotator][judgement.choice] += 1
    return {
        annotator
        for annotator, count in sides.items()
        if count.total() >= SIDE_BIAS_VOTES and binomtest(count["a"], count.total()).pvalue < SIDE_BIAS_LEVEL
    }


def agreement(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Return how far judges agree on pairs that were judged more than once.

    ``krippendorff_alpha`` (nominal scale, Krippendorff 2011, section B) corrects for chance; ``share`` is the plain
    share of agreeing couples of judgements; ``couples`` is their number. NaN where no pair was judged twice.
    """
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for judgement in judgements:
        units[judgement.pair_id][canonical_choice(judgement)] += 1
    repeated = [unit for unit in units.values() if unit.total() > 1]
    if not repeated:
        return {"couples": 0.0, "share": float("nan"), "krippendorff_alpha": float("nan")}
    couples = sum(unit.total() * (unit.total() - 1) // 2 for unit in repeated)
    agreeing = sum(count * (count - 1) // 2 for unit in repeated for count in unit.values())
    return {
        "couples": float(couples),
        "share": agreeing / couples,
        "krippendorff_alpha": _alpha(repeated),
    }


def _alpha(units: Sequence[Counter[str]]) -> float:
    totals: Counter[str] = Counter()
    observed = 0.0
    for unit in units:
        size = unit.total()
        totals.update(unit)
        observed += sum(count * (size - count) for count in unit.values()) / (size - 1)
    number = totals.total()
    expected = sum(count * (number - count) for count in totals.values()) / (number - 1)
    return 1 - observed / expected if expected else float("nan")


def to_table(judgements: Iterable[Judgement]) -> pa.Table:
    """Return judgements as an Arrow table."""
    return pa.Table.from_pylist([asdict(judgement) for judgement in judgements], schema=SCHEMA)


def write_judgements(path: Path, judgements: Iterable[Judgement]) -> None:
    """Write judgements to one Parquet file."""
    pq.write_table(to_table(judgements), path)


def read_judgements(path: Path) -> list[Judgement]:
    """Read what :func:`write_judgements` wrote.

    Raises:
        UserError: the file is missing or holds something else.
    """
    with artifacts.reading(path):
        return [Judgement(**row) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
