"""What the pairs must satisfy, as tables and checks; :mod:`prefrestore.data.expectations` runs the checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefrestore.artifacts import read_json
from prefrestore.config import ValidateConfig
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.recipes import recipe_named
from prefrestore.data.tables import COUNTS, read_rows, shard_paths
from prefrestore.errors import UserError

FACE_COLUMNS = (
    "id",
    "split",
    "sha256",
    "width",
    "height",
    "caption",
    "landmarks",
    "sharpness",
    "licence",
    "phash",
    "identity",
)
PAIR_KEY = ["id", "variant"]
NO_LEAK = "no near-duplicate stands in both splits"
Statistics = Mapping[str, Mapping[str, Sequence[float]]]
QUANTILES = 101
CHUNK = 1024
SLACK = 1e-9  # of a drawn number: scaling and thirds round


@dataclass(frozen=True)
class Check:
    """One expectation about one table."""

    name: str
    table: str
    expectation: str  # class name in great_expectations.expectations
    arguments: Mapping[str, Any]


def face_table(pairs: Path) -> pd.DataFrame:
    """Return one row per face, without pixels, sorted by id."""
    rows = [row for path in shard_paths(pairs, "hq") for row in read_rows(path, FACE_COLUMNS)]
    table = pd.DataFrame(rows, columns=list(FACE_COLUMNS)).sort_values("id", ignore_index=True)
    table["landmarks"] = table["landmarks"].map(len) // 2
    table["leak_distance"] = leak_distances(table)
    table["identity_splits"] = table.groupby("identity")["split"].transform("nunique").where(table["identity"] != "", 1)
    return table


def leak_distances(faces: pd.DataFrame) -> np.ndarray:
    """Return, for each face, the bits in which its hash differs from the nearest of the other split.

    Where the other split is empty, the number of bits of a hash.
    """
    hashes = np.array([list(bytes.fromhex(text)) for text in faces["phash"]], np.uint8)
    distances = np.full(len(faces), hashes.shape[1] * 8, np.int64)
    held_out = np.flatnonzero(faces["split"] == "eval")
    training = np.flatnonzero(faces["split"] == "train")
    for one in held_out:
        for start in range(0, len(training), CHUNK):
            others = training[start : start + CHUNK]
            bits = np.bitwise_count(hashes[others] ^ hashes[one]).sum(1)
            distances[others] = np.minimum(distances[others], bits)
            distances[one] = min(distances[one], bits.min())
    return distances


def pair_tables(pairs: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return one row per LQ image, and per recipe a table with a row for every operation's drawn numbers."""
    images: list[dict[str, Any]] = []
    operations: dict[str, list[dict[str, Any]]] = {}
    for path in shard_paths(pairs, "lq"):
        for row in read_rows(path, ("id", "variant", "split", "recipe", "severity", "record")):
            record = DegradationRecord.from_json(row.pop("record"))
            shape = {"height": record.height, "width": record.width}
            images.append({**row, **shape, "operations": len(record.operations)})
            key = {"id": f"{row['id']}/{row['variant']}"}
            name = f"{record.recipe} ({record.severity}, {record.height} x {record.width} px)"
            operations.setdefault(name, []).extend(key | numbers for numbers in record.parameters())
    return pd.DataFrame(images), {name: pd.DataFrame(rows) for name, rows in operations.items()}


def tables_of(pairs: Path) -> dict[str, pd.DataFrame]:
    """Return every table that is checked, by name."""
    faces = face_table(pairs)
    images, operations = pair_tables(pairs)
    counts = read_json(pairs / COUNTS)
    total = counts["rejected"] + len(faces)
    source = {"id": "source", "rejected": counts["rejected"], "share": counts["rejected"] / max(total, 1)}
    return {
        "source": pd.DataFrame([source]),
        "faces": faces,
        "training faces": faces[faces["split"] == "train"].reset_index(drop=True),
        "evaluation faces": faces[faces["split"] == "eval"].reset_index(drop=True),
        "LQ images": images,
        **operations,
    }


def checks_of(tables: Mapping[str, pd.DataFrame], config: ValidateConfig) -> list[Check]:
    """Return what is expected of the tables."""
    groups = [name for name in tables if name.endswith(" px)")]
    return [
        _between("enough images were usable", "source", "share", (0, config.max_rejected)),
        *(
            Check(f"{minimum} {table} or more", table, "ExpectTableRowCountToBeBetween", {"min_value": minimum})
            for table, minimum in (("training faces", config.min_train), ("evaluation faces", config.min_eval))
        ),
        *(
            Check(f"every face has its {column}", "faces", "ExpectColumnValuesToNotBeNull", {"column": column})
            for column in ("id", "split", "sha256", "caption", "sharpness", "licence", "phash")
        ),
        _unique("face ids are unique", "faces", "id"),
        _unique("no two faces have the same pixels", "faces", "sha256"),
        _within("landmarks are all there or absent", "faces", "landmarks", [0, 68]),
        _between("faces have detail", "faces", "sharpness", (0, None), strict_min=True),
        _between(NO_LEAK, "faces", "leak_distance", (config.near_duplicate, None), strict_min=True),
        _between("no person stands in both splits", "faces", "identity_splits", (1, 1)),
        Check("no LQ image stands twice", "LQ images", "ExpectCompoundColumnsToBeUnique", {"column_list": PAIR_KEY}),
        _within("LQ images belong to faces", "LQ images", "id", sorted(tables["faces"]["id"])),
        *(check for name in groups for check in _range_checks(name, tables[name])),
    ]


def _range_checks(name: str, table: pd.DataFrame) -> list[Check]:
    recipe, rest = name.split(" (")
    severity, size = rest.removesuffix(" px)").split(", ")
    height, width = map(int, size.split(" x "))
    bounds: Any = recipe_named(recipe).bounds((height, width), severity)  # type: ignore[arg-type]
    columns = [column for column in table.columns if column != "id"]
    unknown = sorted(set(columns) - set(bounds))
    if unknown:
        raise UserError(f"pairs: recipe {recipe} does not draw {unknown[0]}: make the pairs again with this version")
    return [
        _between(f"{column} is in its range", name, column, (bounds[column][0] - SLACK, bounds[column][1] + SLACK))
        for column in sorted(columns)
    ]


def _between(name: str, table: str, column: str, bounds: tuple[Any, Any], **more: Any) -> Check:
    arguments = {"column": column, "min_value": bounds[0], "max_value": bounds[1], **more}
    return Check(name, table, "ExpectColumnValuesToBeBetween", arguments)


def _unique(name: str, table: str, column: str) -> Check:
    return Check(name, table, "ExpectColumnValuesToBeUnique", {"column": column})


def _within(name: str, table: str, column: str, values: list[Any]) -> Check:
    return Check(name, table, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values})


# --- drift ----------------------------------------------------------------------------------------


def statistics(tables: Mapping[str, pd.DataFrame]) -> Statistics:
    """Return quantiles of every number of the data: what a later version is compared with."""
    return {
        name: {
            column: [float(value) for value in np.quantile(table[column].dropna(), np.linspace(0, 1, QUANTILES))]
            for column in sorted(table.select_dtypes("number").columns)
            if table[column].notna().any()
        }
        for name, table in tables.items()
        if name != "source"
    }


def read_reference(config: ValidateConfig) -> Statistics | None:
    """Return the statistics that the configuration pins, or None.

    Raises:
        UserError: the file is missing, or is not the one pinned.
    """
    if config.reference is None:
        return None
    path = Path(config.reference)
    if not path.is_file():
        raise UserError(f"validate.reference: {path} does not exist: give a reference.json of an earlier data_report")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != config.reference_digest:
        raise UserError(f"validate.reference_digest: {path} has {digest}: pin this digest, or give the pinned file")
    found: Statistics = read_json(path)
    return found


def drift_table(tables: Mapping[str, pd.DataFrame], reference: Statistics) -> pd.DataFrame:
    """Return the Kolmogorov-Smirnov distance of every column to the reference; NaN where a column is new or gone."""
    now = statistics(tables)
    names = sorted({(table, column) for side in (now, reference) for table in side for column in side[table]})
    rows = []
    for table, column in names:
        one, other = now.get(table, {}).get(column), reference.get(table, {}).get(column)
        distance = np.nan if one is None or other is None else _distance(np.array(one), np.array(other))
        rows.append({"id": f"{table}: {column}", "distance": distance})
    return pd.DataFrame(rows, columns=["id", "distance"])


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two distribution functions, each given by quantiles."""
    points = np.concatenate([first, second])
    sides = [np.searchsorted(side, points, "right") / len(side) for side in (first, second)]
    return float(np.abs(sides[0] - sides[1]).max())


def drift_checks(config: ValidateConfig) -> list[Check]:
    """Return what is expected of the drift table."""
    return [
        Check("every number can be compared", "drift", "ExpectColumnValuesToNotBeNull", {"column": "distance"}),
        _between("no number has drifted", "drift", "distance", (0, config.max_drift)),
    ]
