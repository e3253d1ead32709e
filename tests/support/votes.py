"""Votes that differ in a number."""

from __future__ import annotations

from prefrestore.data.preferences import Judgement, pair_id


def vote(number: int, day: int = 1) -> Judgement:
    """Return a sound judgement; another number is another pair."""
    a, b = f"{number:064x}", f"{number + 1:064x}"
    return Judgement(
        pair_id=pair_id("0", a, b),
        lq_id="face/0",
        lq_digest="0",
        digest_a=a,
        digest_b=b,
        model_a="m",
        model_b="m",
        seed_a=0,
        seed_b=1,
        choice="a",
        annotator="ann",
        repeat=0,
        source="human",
        instruction="which?",
        time=f"2026-01-{day:02d}T00:00:00Z",
        tool_version="0",
    )
