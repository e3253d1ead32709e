"""Taking faces from a source until there are enough, with a note of everything set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from prefrestore.config import IngestConfig
from prefrestore.data.sources import open_source
from prefrestore.data.tables import Face, Rejection, Split
from prefrestore.errors import UserError
from prefrestore.faces.extraction import Extracted, Extraction, describe, extract
from prefrestore.runtime.pool import ordered_map
from prefrestore.runtime.progress import track

FIRST_EVAL_PORTRAIT = 900_000  # so that evaluation portraits do not depend on the number of training portraits
PORTRAIT_LICENCE = "CC0-1.0"
COPY = "copy of another image"


class Intake:
    """One pass over a source: yields faces, counts them, keeps what was rejected."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._limits: Mapping[Split, int] = {"train": config.num_train, "eval": config.num_eval}
        self._seen: set[str] = set()
        self.taken: dict[Split, int] = {"train": 0, "eval": 0}
        self.rejected: list[Rejection] = []

    def faces(self) -> Iterator[Face]:
        """Yield faces in the order of the source, as many of each split as wanted, then the drawn ones.

        Raises:
            UserError: the source does not exist, or a split stays empty.
        """
        for extracted in self._extracted():
            if extracted.split and self._full(extracted.split):
                continue  # workers look ahead: what they found after enough was there must not count
            self.rejected.extend(extracted.rejected)
            yield from filter(self._accept, extracted.faces)
            if self._full("train") and self._full("eval"):
                break
        self._check()
        yield from self._drawn()

    def _drawn(self) -> Iterator[Face]:
        """Yield captioned portraits that join another source's training faces; evaluation faces are its own alone."""
        if self._config.source == "portraits":
            return
        items: list[tuple[int, Split]] = [(index, "train") for index in range(self._config.drawn)]
        draw = partial(portrait, image_size=self._config.image_size, seed=self._config.seed)
        for extracted in self._work(draw, items, len(items)) if items else ():
            self.taken["train"] += len(extracted.faces)
            yield from extracted.faces

    def _full(self, split: Split) -> bool:
        return 0 < self._limits[split] <= self.taken[split]

    def _accept(self, face: Face) -> bool:
        if self._full(face.split):
            return False
        if face.sha256 in self._seen:
            self.rejected.append(Rejection(face.id, COPY))
            return False
        self._seen.add(face.sha256)
        self.taken[face.split] += 1
        return True

    def _extracted(self) -> Iterator[Extracted]:
        config = self._config
        if config.source == "portraits":
            items = list(portrait_items(config.num_train, config.num_eval))
            draw = partial(portrait, image_size=config.image_size, seed=config.seed)
            return self._work(draw, items, len(items))
        source = open_source(config)
        wanted = (one for one in source.candidates if not (one.split and self._full(one.split)))
        return self._work(partial(extract, how=extraction(config)), wanted, source.total)

    def _work(self, function: Any, items: Iterable[Any], total: int | None) -> Iterator[Extracted]:
        results = ordered_map(function, items, workers=self._config.workers)
        return track(results, "ingest", total=total, unit="images")

    def _check(self) -> None:
        if all(self.taken.values()):
            return
        reasons = Counter(row.reason for row in self.rejected)
        told = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "none set aside"
        empty = " and no ".join(split for split, count in self.taken.items() if count == 0)
        raise UserError(
            f"ingest.uri: {self._config.uri or self._config.source} gives no {empty} faces ({told}): "
            "give more or other images, or change ingest.split or ingest.eval_share"
        )


def extraction(config: IngestConfig) -> Extraction:
    """Return how a source's candidates become faces."""
    return Extraction(
        config.image_size,
        config.aligned,
        config.split,
        config.eval_share,
        config.licence,
        config.seed,
        config.views,
    )


def portrait_items(num_train: int, num_eval: int) -> Iterator[tuple[int, Split]]:
    """Yield index and split of the procedural portraits.

    Raises:
        UserError: a number is zero or too large; portraits have no end, so "all there are" means nothing.
    """
    if not (num_train and num_eval) or num_train > FIRST_EVAL_PORTRAIT:
        raise UserError(
            f"ingest: {num_train} training and {num_eval} evaluation portraits: ask for at least one of each, "
            f"and for at most {FIRST_EVAL_PORTRAIT} to train"
        )
    yield from ((index, "train") for index in range(num_train))
    yield from ((FIRST_EVAL_PORTRAIT + index, "eval") for index in range(num_eval))


def portrait(item: tuple[int, Split], image_size: int, seed: int) -> Extracted:
    """Draw one procedural portrait; its landmarks and caption are exact."""
    from prefrestore.data.portraits import render

    index, split = item
    drawn = render(index, image_size, seed)
    face_id = f"portraits-{index:06d}"
    origin = {
        "id": face_id,
        "split": split,
        "width": image_size,
        "height": image_size,
        "caption": drawn.caption,
        "licence": PORTRAIT_LICENCE,
        "identity": face_id,
    }
    landmarks = drawn.landmarks.astype("float32")
    box = np.concatenate([landmarks.min(0), landmarks.max(0)])
    return Extracted(split, (describe(drawn.image, landmarks, box, origin),), ())
