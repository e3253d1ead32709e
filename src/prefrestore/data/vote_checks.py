"""What a vote store must satisfy, as Great Expectations checks, and its statistics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import pandas as pd

from prefrestore.data.preferences import (
    CHOICES,
    SIDE_BIAS_LEVEL,
    SIDE_BIAS_VOTES,
    SOURCES,
    Judgement,
    agreement,
    canonical_choice,
    check_judgements,
    judgement_id,
    side_biased,
)
from prefrestore.data.validation import Check
from prefrestore.data.vote_store import Votes


def vote_tables(
    votes: Votes, candidates: Collection[tuple[str, str]] | None, now: datetime | None
) -> dict[str, pd.DataFrame]:
    """Return the tables that :func:`vote_checks` look at: shards, judgements and annotators.

    Args:
        votes: what the store holds.
        candidates: LQ id and digest of every known candidate; None: all that are named are taken as known.
        now: the present time.
    """
    known = _named(votes.judgements) if candidates is None else candidates
    refused = {row.name: row.reason for row in check_judgements(votes.judgements, known, now).rejected}
    rows = [
        {"id": key, "problem": refused.get(key), **asdict(judgement)}
        for judgement in votes.judgements
        if (key := judgement_id(judgement))
    ]
    shards = [{"id": row.name, "problem": row.reason} for row in votes.rejected]
    whole = [{"id": name, "problem": None} for name in votes.shards if name not in {row["id"] for row in shards}]
    columns = ["id", "problem", *(field.name for field in fields(Judgement))]
    return {
        "shards": pd.DataFrame(shards + whole, columns=["id", "problem"]),
        "judgements": pd.DataFrame(rows, columns=columns),
        "annotators": annotator_table(votes.judgements),
    }


def _named(judgements: Iterable[Judgement]) -> set[tuple[str, str]]:
    return {(row.lq_id, digest) for row in judgements for digest in (row.digest_a, row.digest_b)}


def vote_checks() -> list[Check]:
    """Return the expectations."""
    return [
        Check("every shard and row can be read", "shards", "ExpectColumnValuesToBeNull", {"column": "problem"}),
        Check("every judgement is sound", "judgements", "ExpectColumnValuesToBeNull", {"column": "problem"}),
        _among("choice", CHOICES),
        _among("source", SOURCES),
        Check(
            "annotators are named",
            "judgements",
            "ExpectColumnValueLengthsToBeBetween",
            {"column": "annotator", "min_value": 1, "max_value": 64},
        ),
        Check("no annotator presses one side", "annotators", "ExpectColumnValuesToBeNull", {"column": "problem"}),
    ]


def _among(column: str, values: Sequence[str]) -> Check:
    arguments = {"column": column, "value_set": list(values)}
    return Check(f"{column} is one of {', '.join(values)}", "judgements", "ExpectColumnValuesToBeInSet", arguments)


def annotator_table(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Return a row per annotator: votes, share of decided votes for a, share of ties, consistency on hidden repeats."""
    biased = side_biased(judgements)
    text = f"presses one side ({SIDE_BIAS_VOTES} votes or more, p < {SIDE_BIAS_LEVEL:g})"
    rows = []
    for name in sorted({judgement.annotator for judgement in judgements}):
        own = [judgement for judgement in judgements if judgement.annotator == name]
        choices = Counter(judgement.choice for judgement in own)
        decided = choices["a"] + choices["b"]
        rows.append(
            {
                "id": name,
                "votes": len(own),
                "share_a": choices["a"] / decided if decided else None,
                "share_tie": choices["tie"] / len(own),
                "consistency": consistency(own),
                "problem": text if name in biased else None,
            }
        )
    return pd.DataFrame(rows, columns=["id", "votes", "share_a", "share_tie", "consistency", "problem"])


def consistency(judgements: Sequence[Judgement]) -> float | None:
    """Return the share of hidden repeats answered as the first time; None where nothing was repeated."""
    showings: dict[str, dict[int, str]] = defaultdict(dict)
    for judgement in judgements:
        showings[judgement.pair_id][judgement.repeat] = canonical_choice(judgement)
    repeats = [
        choice == showing[0] for showing in showings.values() if 0 in showing for n, choice in showing.items() if n > 0
    ]
    return sum(repeats) / len(repeats) if repeats else None


def vote_statistics(votes: Votes) -> dict[str, Any]:
    """Return counts, agreement and a row per annotator, as plain data; ``valid`` are those that training would take."""
    annotators = annotator_table(votes.judgements).astype(object)
    return {
        "shards": len(votes.shards),
        "judgements": len(votes.judgements),
        "valid": len(check_judgements(votes.judgements, _named(votes.judgements)).kept),
        "pairs": len({judgement.pair_id for judgement in votes.judgements}),
        "sources": dict(sorted(Counter(judgement.source for judgement in votes.judgements).items())),
        "choices": dict(sorted(Counter(judgement.choice for judgement in votes.judgements).items())),
        "agreement": {key: None if pd.isna(value) else value for key, value in agreement(votes.judgements).items()},
        "annotators": annotators.where(annotators.notna(), None).to_dict("records"),
        "set_aside": [asdict(rejection) for rejection in votes.rejected],
    }
