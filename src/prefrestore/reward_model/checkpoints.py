"""What candidates are drawn from: the base, and other checkpoints whose restorations differ from its."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.models.adapters import load_policy
from prefrestore.models.pipeline import PrefRestorePipeline


def load_checkpoint(place: Path, base: Path) -> PrefRestorePipeline:
    """Load a policy trained on ``base``, a release (its own base and policy), or another base.

    Raises:
        UserError: the folder holds none of these, or one that restores another size or belongs to another base.
    """
    if (place / "policy" / "policy.json").is_file():
        base, policy = place / "base", place / "policy"
    elif (place / "policy.json").is_file():
        policy = place
    elif (place / "model_index.json").is_file():
        return PrefRestorePipeline.from_pretrained(place)
    else:
        raise UserError(
            f"sample_candidates: checkpoints: {place} holds no policy, release or base: name another folder"
        )
    pipeline = PrefRestorePipeline.from_pretrained(base)
    load_policy(pipeline, policy, artifacts.digest(base))
    return pipeline
