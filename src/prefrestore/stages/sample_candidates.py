"""Draw restorations of training faces from the base model: several seeds and step counts for one LQ image."""

from __future__ import annotations

from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import SampleCandidatesConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.reward_model.candidates import choose_tasks, draw_candidates, write_candidates, write_inputs


def run(config: SampleCandidatesConfig, *, pairs: Path, base: Path, candidates: Path) -> None:
    """Write ``candidates.parquet`` and the LQ images they restore.

    Args:
        config: how many faces, seeds and step counts.
        pairs: artifact with the training faces and their LQ variants.
        base: artifact with the pipeline to draw from.
        candidates: empty output folder.
    """
    faces = load_pairs(pairs, "train")
    pipeline = PrefRestorePipeline.from_pretrained(base)
    model = artifacts.digest(base)[:12]
    tasks = choose_tasks(faces, config)
    write_candidates(candidates, list(draw_candidates(pipeline, faces, tasks, config, model)))
    write_inputs(candidates, faces, tasks)
