"""From columns to a table of values per face, method and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd

from prefrestore.data.degradation import degrade
from prefrestore.data.operations import DegradationRecord
from prefrestore.data.pairs import PairSet, to_tensor
from prefrestore.evaluation.columns import Column
from prefrestore.evaluation.metrics import high_band_energy, ms_ssim, psnr, sharpness, ssim
from prefrestore.evaluation.niqe import NaturalModel, fit_natural_model, niqe
from prefrestore.evaluation.perceptual import lpips_values
from prefrestore.evaluation.uncertainty import identity_spread, latent_entropy, sample_entropy, sample_spread
from prefrestore.faces.analysis import FaceAnalysis
from prefrestore.faces.identity import identity_angle, identity_similarity, verification_rank
from prefrestore.faces.landmarks import landmark_distance
from prefrestore.models.lpips import Lpips
from prefrestore.rewards.base import References
from prefrestore.rewards.composite import CompositeReward
from prefrestore.runtime.progress import track


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        samples: a row per column, face and sample: ``column``, ``id``, ``sample``, ``recipe``, ``severity``, the
            metrics of the metric table, and the reward's parts as ``reward_<name>``. Metrics of a face's set of samples
            stand in each of its rows. NaN is what could not be measured.
        embeddings: dlib's embeddings by column, [S, N, 128].
        hq_embeddings: those of HQ, [N, 128].
    """

    samples: pd.DataFrame
    embeddings: Mapping[str, np.ndarray]
    hq_embeddings: np.ndarray


@dataclass(frozen=True)
class Known:
    """What is known of the faces, computed once for all columns."""

    pairs: PairSet
    references: References
    energies: Sequence[float]
    natural: NaturalModel


@dataclass(frozen=True)
class SetValues:
    """What one set of pictures, one of every face, measures."""

    embeddings: np.ndarray  # [N, 128]
    hq_embeddings: np.ndarray  # [N, 128]
    metrics: Mapping[str, Sequence[float] | np.ndarray]


def measure(
    columns: Sequence[Column], pairs: PairSet, reward: CompositeReward, lpips: Lpips | None = None, workers: int = 1
) -> Measurements:
    """Measure every sample of every column; without its network LPIPS is NaN.

    A set of pictures that stands in several columns, as where alignment kept the base, is measured once.
    """
    known = _known(pairs)
    perceptual = lpips_values(lpips, columns, pairs.hq, workers)
    jobs = [(column, sample) for column in columns for sample in range(len(column.samples))]
    measured: dict[bytes, SetValues] = {}
    frames: list[pd.DataFrame] = []
    embeddings: dict[str, list[np.ndarray]] = {column.name: [] for column in columns}
    for column, sample in track(jobs, "evaluate: measure", total=len(jobs), unit="set"):
        restored = column.samples[sample]
        if (key := sha256(restored.tobytes()).digest()) not in measured:
            measured[key] = _measure_set(restored, known, reward)
        found = measured[key]
        embeddings[column.name].append(found.embeddings)
        names = {"column": column.name, "id": pairs.ids, "sample": sample, **_drawn(pairs)}
        values = {**found.metrics, "lpips": perceptual[column.name][sample]}
        frames.append(pd.DataFrame({**names, **values}))
    stacked = {name: np.stack(rows) for name, rows in embeddings.items()}
    spreads = {column.name: _spread_values(column, stacked[column.name]) for column in columns}
    frames = [frame.assign(**spreads[column.name]) for frame, (column, _) in zip(frames, jobs, strict=True)]
    return Measurements(pd.concat(frames, ignore_index=True), stacked, found.hq_embeddings)


def _known(pairs: PairSet) -> Known:
    references = References(to_tensor(pairs.lq[:, 0]), to_tensor(pairs.hq), pairs.captions, pairs.landmarks, pairs.ids)
    return Known(pairs, references, [high_band_energy(image) for image in pairs.hq], fit_natural_model(pairs.hq))


def _spread_values(column: Column, embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of each face's set of samples [N], from the column and its embeddings [S, N, 128]."""
    unknown = np.full(embeddings.shape[1], np.nan)
    return {
        "sample_spread": sample_spread(column.samples),
        "sample_entropy": sample_entropy(column.samples),
        "latent_entropy": unknown if column.latents is None else latent_entropy(column.latents),
        "identity_spread": identity_spread(embeddings),
    }


def _measure_set(restored: np.ndarray, known: Known, reward: CompositeReward) -> SetValues:
    with ThreadPoolExecutor(1) as other:  # waits for the processes that analyse faces, while pixels are compared here
        faces = other.submit(read_faces, restored, known.references, reward)
        pixels = _pixel_values(restored, known)
        seen, hq = faces.result()
    others = {**_face_values(seen, hq), **_reward_values(restored, known.references, reward)}
    return SetValues(seen.embeddings, hq.embeddings, {**pixels, **others})


def _drawn(pairs: PairSet) -> dict[str, list[str]]:
    first = [records[0] for records in pairs.records]
    return {"recipe": [record.recipe for record in first], "severity": [record.severity for record in first]}


def _pixel_values(restored: np.ndarray, known: Known) -> dict[str, list[float]]:
    both = list(zip(restored, known.pairs.hq, strict=True))
    frozen = zip(restored, known.pairs.records, known.pairs.lq[:, 0], strict=True)
    return {
        "psnr": [psnr(a, b) for a, b in both],
        "ssim": [ssim(a, b) for a, b in both],
        "ms_ssim": [ms_ssim(a, b) for a, b in both],
        "sharpness": [sharpness(image, energy) for image, energy in zip(restored, known.energies, strict=True)],
        "niqe": [niqe(image, known.natural) for image in restored],
        "lq_consistency": [_consistency(image, records[0], lq) for image, records, lq in frozen],
    }


def _consistency(image: np.ndarray, record: DegradationRecord, lq: np.ndarray) -> float:
    """Return the PSNR of the image degraded again; NaN where nobody recorded how."""
    return psnr(degrade(image, record), lq) if record.operations else float("nan")


def read_faces(
    restored: np.ndarray, references: References, reward: CompositeReward
) -> tuple[FaceAnalysis, FaceAnalysis]:
    """Return what dlib sees in restored images [N, H, W, 3] and in HQ; the reward's own parts use it again."""
    found = reward.reader.read(to_tensor(restored), references)
    if found is None:
        raise ValueError("faces are measured against HQ images and their landmarks")
    return found


def _face_values(seen: FaceAnalysis, hq: FaceAnalysis) -> dict[str, np.ndarray]:
    return {
        "identity_similarity": identity_similarity(seen.embeddings, hq.embeddings),
        "identity_angle": identity_angle(seen.embeddings, hq.embeddings),
        "verification_rank": verification_rank(seen.embeddings, hq.embeddings),
        "landmark_distance": landmark_distance(seen.landmarks, hq.landmarks),
    }


def _reward_values(restored: np.ndarray, references: References, reward: CompositeReward) -> dict[str, np.ndarray]:
    images = to_tensor(restored)
    parts = reward.parts(images, references)
    asked = reward.judge.score(images, references).double().numpy() if reward.judge else np.full(len(images), np.nan)
    return {
        "test_judge": asked,
        "reward_total": reward.totals(parts).double().numpy(),
        **{f"reward_{name}": values.double().numpy() for name, values in parts.items()},
    }
