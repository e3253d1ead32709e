"""Stage ``degrade``: make LQ/HQ pairs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from prefrestore.config import DegradeConfig
from prefrestore.data.pairing import Pairing, chosen_shards, make_pairs, write_pairs
from prefrestore.data.recipes import recipe_named
from prefrestore.data.tables import COUNTS, REJECTED, Face, read_faces, row_count
from prefrestore.runtime.pool import ordered_map
from prefrestore.runtime.progress import track


def run(config: DegradeConfig, *, faces: Path, pairs: Path) -> None:
    """Degrade every face of this part of the work; the parts of a cut-up run merge to the same bytes as one run."""
    recipe_named(config.recipe)
    recipe_named(config.eval_recipe)
    shards = chosen_shards(faces, config.shard_index, config.shard_count)
    how = Pairing(config.recipe, config.eval_recipe, config.variants, config.seed)
    rows: Iterator[Face] = (face for shard in shards for face in read_faces(shard))
    made = ordered_map(partial(make_pairs, how=how), rows, workers=config.workers)
    progress = track(made, "degrade", total=row_count(shards), unit="faces")
    for shard in shards:
        write_pairs(shard, pairs, (pair for group in islice(progress, row_count([shard])) for pair in group))
    for name in (COUNTS, REJECTED):
        shutil.copyfile(faces / name, pairs / name)
