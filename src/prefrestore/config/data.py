"""What data are made, and how they are checked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefrestore.config.base import Address, Count, Positive, Section, Share, Workers


class IngestConfig(Section):
    """Where faces come from."""

    source: Literal["portraits", "folder", "parquet", "tar", "hf", "s3"] = Field(description="kind of source")
    uri: Address = Field(description="folder, file or address; empty for portraits")
    image_size: Positive = Field(description="side of the square faces, pixels")
    num_train: Count = Field(description="training faces to take (0: all there are)")
    num_eval: Count = Field(description="evaluation faces to take (0: all there are)")
    drawn: Count = Field(
        description="captioned portraits of our own drawing added to another source's training faces, so that text "
        "keeps its meaning where photographs have no captions"
    )
    views: Positive = Field(
        description="views of each face of an image to train on, counted as faces: the FFHQ crop itself, and crops a "
        "little turned, moved, scaled and in other light (1: the crop alone)"
    )
    aligned: bool = Field(description="images are FFHQ-aligned faces already: do not detect and align again")
    split: Literal["folder", "identity", "hash"] = Field(
        description="folder: subfolders train/ and val/ (by hash where there are none); identity: by person"
    )
    eval_share: Share = Field(description="share of faces held out where the split is by hash or identity")
    licence: str = Field(description="licence of the images where the source does not name one")
    shard_rows: Positive = Field(description="faces in one Parquet file: the unit of memory and of sharded work")
    seed: Count
    workers: Workers = Field(description="processes")


class DegradeConfig(Section):
    """How LQ images are made (reference-method section 3)."""

    recipe: str = Field(description="recipe of the training pairs")
    eval_recipe: str = Field(description="recipe of the frozen evaluation pairs")
    variants: Positive = Field(description="recorded degradations of each training face (K)")
    shard_index: Count = Field(description="which part of the work to do, from 0")
    shard_count: Positive = Field(description="parts the work is cut into (1: all of it)")
    seed: Count
    workers: Workers = Field(description="processes")


class ValidateConfig(Section):
    """What the manifest of the pairs must satisfy."""

    min_train: Positive
    min_eval: Positive
    max_rejected: Share = Field(description="share of source images that may be set aside")
    near_duplicate: Count = Field(description="faces of both splits whose 256-bit hashes differ in no more bits leak")
    reference: str | None = Field(description="statistics of an earlier data version (a reference.json); null: none")
    reference_digest: str | None = Field(description="sha256 of that file, so that the choice is pinned")
    max_drift: Share = Field(description="largest Kolmogorov-Smirnov distance to the reference, per column")
