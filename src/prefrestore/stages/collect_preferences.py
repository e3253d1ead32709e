"""Gather judgements: checked votes of people, if there is a store, and simulated ones, if configured."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import CollectPreferencesConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.data.preferences import check_judgements, write_judgements
from prefrestore.data.vote_store import Votes, read
from prefrestore.errors import UserError
from prefrestore.reward_model.collect import JUDGEMENTS, measure_qualities, simulate, summarise, write_qualities
from prefrestore.reward_model.dataset import build_scene, load_candidates
from prefrestore.reward_model.imported import gather, write_imported
from prefrestore.reward_model.roles import assign_roles, write_roles


def run(config: CollectPreferencesConfig, *, candidates: Path, pairs: Path, preferences: Path) -> None:
    """Write judgements, the judges' faces, what was set aside and why, and the simulated annotators' measurements.

    Args:
        config: vote store and simulation.
        candidates: artifact with the restorations.
        pairs: artifact with the faces they were made for.
        preferences: empty output folder.

    Raises:
        UserError: no judgement is left.
    """
    drawn = load_candidates(candidates)
    known = set(zip(drawn.groups, drawn.digests, strict=True))
    votes = read(config.votes) if config.votes else Votes((), (), ())
    judgements = list(votes.judgements)
    imported = gather(judgements, config.votes, drawn.images.shape[1]) if config.votes else []
    if imported:
        write_imported(preferences, imported)
        known |= {(row.group_id, row.sha256) for row in imported}
    if config.simulated.pairs:
        scene = build_scene(load_pairs(pairs, "train"), drawn.groups)
        qualities = measure_qualities(drawn, scene, config)
        write_qualities(preferences, drawn, qualities)
        judgements += simulate(drawn, scene, qualities, config)
    checked = check_judgements(judgements, known)
    if not checked.kept:
        raise UserError("collect_preferences: no judgement is left: give a vote store or set simulated.pairs")
    write_roles(preferences, assign_roles(drawn.groups, config))
    write_judgements(preferences / JUDGEMENTS, checked.kept)
    artifacts.write_json(preferences / "summary.json", summarise(checked.kept, votes.rejected + checked.rejected))
