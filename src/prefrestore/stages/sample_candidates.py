"""Draw restorations of training faces: several seeds, step counts and checkpoints for one LQ image."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import SampleCandidatesConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.errors import UserError
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.reward_model.candidates import (
    choose_tasks,
    draw_candidates,
    write_candidates,
    write_inputs,
)
from prefrestore.reward_model.checkpoints import load_checkpoint
from prefrestore.runtime import seeding
from prefrestore.runtime.crew import accelerator


def run(config: SampleCandidatesConfig, *, pairs: Path, base: Path, candidates: Path) -> None:
    """Write ``candidates.parquet`` and the LQ images they restore.

    Args:
        config: how many faces, seeds and step counts, and what to draw from besides the base.
        pairs: artifact with the training faces and their LQ variants.
        base: artifact with the pipeline to draw from.
        candidates: empty output folder.

    Raises:
        UserError: a checkpoint is none, or restores images of another size.
    """
    faces = load_pairs(pairs, "train")
    tasks = choose_tasks(faces, config)
    device = accelerator().device
    rows = list(
        draw_candidates(PrefRestorePipeline.from_pretrained(base).to(device), faces, tasks, config, short(base))
    )
    for place in map(Path, config.checkpoints):
        pipeline = load_checkpoint(place, base)
        if pipeline.image_size != faces.image_size:
            raise UserError(f"sample_candidates: checkpoints: {place} restores {pipeline.image_size} px: take another")
        # noise of its own: two checkpoints with one noise would differ less than a judge can see
        own = config.model_copy(update={"seed": seeding.derive(config.seed, short(place)) % 2**31})
        rows += draw_candidates(pipeline.to(device), faces, tasks, own, short(place))
    write_candidates(candidates, rows)
    write_inputs(candidates, faces, tasks)


def short(folder: Path) -> str:
    """Return the short digest by which a candidate names what drew it."""
    return artifacts.digest(folder)[:12]
