"""Do integrator and text matter? Queries swapped between images; right, empty and wrong captions; code accuracy.

Attributes are read from restored pictures by logistic regression on crops that the exact landmarks align; it is trained
on drawn HQ faces, sharp and blurred, and its accuracy on HQ faces it has not seen is printed beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import plainly
import torch
from torch import Tensor
from torch.nn import functional

from prefrestore import artifacts
from prefrestore.data.degradation import degrade
from prefrestore.data.pairs import PairSet, load_pairs, to_tensor, to_uint8
from prefrestore.data.portraits.captions import caption
from prefrestore.data.portraits.render import Portrait, render
from prefrestore.data.portraits.traits import Traits
from prefrestore.data.recipes import draw_record, recipe_named
from prefrestore.evaluation.metrics import psnr
from prefrestore.faces.analysis import FaceAnalyser
from prefrestore.faces.identity import identity_similarity
from prefrestore.faces.landmarks import landmark_distance
from prefrestore.models.integrator import Decoded
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.runtime.progress import track
from prefrestore.sft.pretrain import join_shown
from prefrestore.sft.sequences import build_sequences, code_loss, final_states
from prefrestore.sft.tokenizer import codebook_use

BATCH = 16
CROP = 32
SEVERE = recipe_named("pref_restore_severe")
FIRST_TEST, FIRST_TRAIN = 500_000, 600_000  # portraits that no configuration trains on


@dataclass(frozen=True)
class Attribute:
    """A visible trait: whether a person has it, and the same person with it the other way round."""

    has: Callable[[Traits], bool]
    flipped: Callable[[Traits], Traits]


BEARDS = ("short beard", "full beard")
ATTRIBUTES: Mapping[str, Attribute] = {
    "glasses": Attribute(
        lambda traits: traits.glasses != "none",
        lambda traits: traits.but(glasses="round" if traits.glasses == "none" else "none"),
    ),
    "beard": Attribute(
        lambda traits: traits.facial_hair in BEARDS,
        lambda traits: traits.but(facial_hair="none" if traits.facial_hair in BEARDS else "full beard"),
    ),
}


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """Return mean, standard error and count of what is known."""
    known = values[~np.isnan(values)]
    return {"mean": float(known.mean()), "error": float(known.std(ddof=1) / len(known) ** 0.5), "n": len(known)}


def batches(count: int) -> list[slice]:
    """Return slices of at most BATCH rows."""
    return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


@torch.no_grad()
def restore(
    pipeline: PrefRestorePipeline, lq: Tensor, said: Decoded, first_seed: int = 0, *, blind: bool = False
) -> np.ndarray:
    """Restore LQ images with what the integrator said; row i's noise has seed ``first_seed + i``: answers are paired.

    ``blind`` keeps LQ itself from the generator, as ``pretrain.lq_dropout`` does in training.
    """
    parts = []
    for rows in batches(len(lq)):
        spatial = pipeline.lq_encoder(lq[rows])
        shown = spatial.new_full((len(spatial),), float(not blind))
        condition = join_shown(pipeline, (said.queries[rows], spatial, said.text[rows]), shown)
        noise = pipeline.initial_noise(range(first_seed + rows.start, first_seed + rows.stop))
        parts.append(to_uint8(pipeline.decode(pipeline.sample(condition, noise))))
    return np.concatenate(parts)


def said_of(pipeline: PrefRestorePipeline, lq: Tensor, texts: Sequence[str]) -> Decoded:
    """Return what the integrator says of LQ images: codes, queries and text states."""
    found = [pipeline.integrate(lq[rows], texts[rows]) for rows in batches(len(lq))]
    return Decoded(*(torch.cat([getattr(one, name) for one in found]) for name in ("ids", "queries", "text")))


# --- queries --------------------------------------------------------------------------------------------


def swapped_queries(
    pipeline: PrefRestorePipeline, pairs: PairSet, others: int, *, blind: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """Return PSNR, identity, landmarks with the image's own queries and with another's, and the paired difference.

    Text and noise are the same with both. Means over ``others`` other images for each image, each with its own noise.
    ``blind``: the generator sees the queries and nothing of LQ.
    """
    lq, analyse = to_tensor(pairs.lq[:, 0]), FaceAnalyser(1)
    own = said_of(pipeline, lq, pairs.captions)
    hq = analyse(pairs.hq, pairs.landmarks)

    def measured(queries: Tensor, first_seed: int) -> dict[str, np.ndarray]:
        restored = restore(pipeline, lq, replace(own, queries=queries), first_seed, blind=blind)
        seen = analyse(restored, pairs.landmarks)
        return {
            "psnr": np.array([psnr(one, other) for one, other in zip(restored, pairs.hq, strict=True)]),
            "identity_similarity": identity_similarity(seen.embeddings, hq.embeddings),
            "landmark_distance": landmark_distance(seen.landmarks, hq.landmarks),
        }

    rounds = [
        (measured(own.queries, shift * len(lq)), measured(own.queries.roll(shift, 0), shift * len(lq)))
        for shift in track(range(1, others + 1), "queries", total=others, unit="round")
    ]
    kept, swapped = (
        {name: np.mean([one[name] for one in side], axis=0) for name in side[0]} for side in zip(*rounds, strict=True)
    )
    values = {"own": kept, "another's": swapped, "difference": {name: swapped[name] - kept[name] for name in kept}}
    return {name: {key: mean_and_error(row) for key, row in rows.items()} for name, rows in values.items()}


def codes(pipeline: PrefRestorePipeline, pairs: PairSet) -> dict[str, float]:
    """Return how many codes are right: generated ones, LQ's own, the most frequent one; and the codebook's use."""
    lq, tokenizer = to_tensor(pairs.lq[:, 0]), pipeline.image_tokenizer
    true = torch.cat([tokenizer.ids(part) for part in to_tensor(pairs.hq).split(BATCH)])
    copied = torch.cat([tokenizer.ids(part) for part in lq.split(BATCH)])
    generated = said_of(pipeline, lq, pairs.captions).ids
    frequent = true.flatten().bincount().max() / true.numel()
    use = codebook_use(tokenizer, pairs.hq)
    return {
        "generated": float((generated == true).float().mean()),
        "copied from LQ": float((copied == true).float().mean()),
        "always the most frequent": float(frequent),
        "codebook used": use.used,
        "codebook perplexity": use.perplexity,
    }


# --- text -----------------------------------------------------------------------------------------------


def portraits(first: int, count: int, size: int) -> list[Portrait]:
    """Draw portraits that nothing was trained on."""
    rows = range(first, first + count)
    return [render(index, size, 0) for index in track(rows, "portraits", total=count, unit="face")]


def crops(images: np.ndarray, faces: Sequence[Portrait]) -> Tensor:
    """Return crops [N, 3 * CROP * CROP] in [-1, 1], the eyes at fixed places."""
    target = np.array([[0.3 * CROP, 0.35 * CROP], [0.7 * CROP, 0.35 * CROP], [0.5 * CROP, 0.8 * CROP]], np.float32)
    rows = []
    for image, face in zip(images, faces, strict=True):
        points = face.landmarks
        own = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[48:68].mean(0)]).astype(np.float32)
        rows.append(cv2.warpAffine(image, cv2.getAffineTransform(own, target), (CROP, CROP), borderMode=1))
    return to_tensor(np.stack(rows)).flatten(1) * 2 - 1


@dataclass(frozen=True)
class Reader:
    """Tells from a crop whether a trait is there: logistic regression on standardised pixels."""

    weights: Tensor
    bias: Tensor
    mean: Tensor

    def __call__(self, rows: Tensor) -> np.ndarray:
        """Return one truth value per crop."""
        return ((rows - self.mean) @ self.weights + self.bias > 0).numpy()


def train_reader(rows: Tensor, labels: np.ndarray, decay: float = 0.003) -> Reader:
    """Fit a reader to crops [N, D]; both answers weigh equally."""
    target = torch.from_numpy(labels.astype(np.float32))
    share = target.mean().clamp(0.02, 0.98)
    balance = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share))
    mean = rows.mean(0)
    weights, bias = torch.zeros(rows.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = (rows - mean) @ weights + bias
        loss = functional.binary_cross_entropy_with_logits(logits, target, balance) + decay * weights.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return Reader(weights.detach(), bias.detach(), mean)


def readers_for(faces: Sequence[Portrait]) -> dict[str, Reader]:
    """Train a reader for every attribute on drawn HQ faces, as they are and blurred as restorations are."""
    sharp = np.stack([face.image for face in faces])
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 0.9 * image.shape[0] / 64) for image in sharp])
    rows = torch.cat([crops(sharp, faces), crops(blurred, faces)])
    return {
        name: train_reader(rows, np.tile([attribute.has(face.traits) for face in faces], 2))
        for name, attribute in ATTRIBUTES.items()
    }


def balanced(right: np.ndarray, present: np.ndarray) -> float:
    """Return the mean of the rates among those with and those without the trait."""
    return float((right[present].mean() + right[~present].mean()) / 2)


@torch.no_grad()
def cross_entropy(pipeline: PrefRestorePipeline, lq: Tensor, hq: Tensor, texts: Sequence[str]) -> float:
    """Return the cross-entropy of HQ's codes given LQ and texts: what the text tells the integrator."""
    total = 0.0
    for rows in batches(len(lq)):
        prompt = pipeline.prompts(pipeline.image_tokenizer.ids(lq[rows]), texts[rows])
        sequences = build_sequences(pipeline, prompt, pipeline.image_tokenizer.ids(hq[rows]))
        total += code_loss(pipeline, final_states(pipeline, sequences), sequences, False)[0].item() * len(lq[rows])
    return total / len(lq)


def captions_matter(
    pipeline: PrefRestorePipeline, faces: Sequence[Portrait], readers: Mapping[str, Reader]
) -> dict[str, dict[str, float]]:
    """Return by attribute how often it is recovered with the right, an empty and a wrong caption."""
    size = pipeline.image_size
    hq = np.stack([face.image for face in faces])
    records = [draw_record(SEVERE, size, 0, f"conditioning-{row}") for row in range(len(faces))]
    lq = to_tensor(np.stack([degrade(image, record) for image, record in zip(hq, records, strict=True)]))
    right_texts, empty = [caption(face.traits) for face in faces], [""] * len(faces)
    pictures = {name: restore(pipeline, lq, said_of(pipeline, lq, texts))
                for name, texts in (("right", right_texts), ("empty", empty))}  # fmt: skip
    found = {}
    for name, attribute in ATTRIBUTES.items():
        wrong = [caption(attribute.flipped(face.traits)) for face in faces]
        shown = {**pictures, "wrong": restore(pipeline, lq, said_of(pipeline, lq, wrong))}
        present = np.array([attribute.has(face.traits) for face in faces])
        hits = {key: readers[name](crops(images, faces)) == present for key, images in shown.items()}
        row = {key: balanced(value, present) for key, value in hits.items()}
        row["reader on HQ"] = balanced(readers[name](crops(hq, faces)) == present, present)
        row["reader on LQ"] = balanced(readers[name](crops(to_uint8(lq), faces)) == present, present)
        for other in ("empty", "wrong"):
            gain = mean_and_error(hits["right"].astype(float) - hits[other])
            row |= {f"gain over {other}": gain["mean"], f"error over {other}": gain["error"]}
        texts = {"right": right_texts, "empty": empty, "wrong": wrong}
        sides = lq, to_tensor(hq)
        row |= {f"cross-entropy {key}": cross_entropy(pipeline, *sides, own) for key, own in texts.items()}
        found[name] = {**row, "present": float(present.mean()), "n": len(faces)}
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("artifacts/base"))
    parser.add_argument("--pairs", type=Path, default=Path("artifacts/pairs"))
    parser.add_argument("--guidance", type=float, help="of the condition over none (default: the base's)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the base's)")
    parser.add_argument("--policy", type=Path, help="adapter of that base, to measure it rather than the base")
    parser.add_argument("--others", type=int, default=12, help="other images whose queries each image is given")
    parser.add_argument("--faces", type=int, default=200, help="drawn faces restored with each caption")
    parser.add_argument("--readers", type=int, default=600, help="drawn faces the attribute readers learn from")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/conditioning.json"))
    options = parser.parse_args()
    pipeline = PrefRestorePipeline.from_pretrained(options.base)
    if options.guidance is not None:
        pipeline.register_to_config(guidance=options.guidance)
    if options.steps is not None:
        pipeline.register_to_config(sampler_steps=options.steps)
    if options.policy is not None:
        pipeline.load_lora_weights(options.policy)
    pairs = load_pairs(options.pairs, "eval")
    others = min(options.others, len(pairs.ids) - 1)
    result: dict[str, object] = {
        "codes": codes(pipeline, pairs),
        "queries": swapped_queries(pipeline, pairs, others, blind=False),
        "queries alone": swapped_queries(pipeline, pairs, others, blind=True),
    }
    print(f"codes, {len(pairs.ids)} held-out faces of the pairs")
    for name, value in result["codes"].items():
        print(f"  {name:<26}{value:10.3f}")
    for part in ("queries", "queries alone"):
        print(f"{part}, same faces and noise: mean +- standard error")
        for name, rows in result[part].items():
            print(f"  {name:<12}" + "".join(f"  {k} {v['mean']:8.4f} +- {v['error']:.4f}" for k, v in rows.items()))
    readers = readers_for(portraits(FIRST_TRAIN, options.readers, pipeline.image_size))
    text = captions_matter(pipeline, portraits(FIRST_TEST, options.faces, pipeline.image_size), readers)
    print(f"captions, {options.faces} drawn faces, severe degradation: balanced rate of recovered attributes")
    for name, row in text.items():
        print(f"  {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    artifacts.write_json(options.json, {**result, "text": text})


if __name__ == "__main__":
    plainly.run(main)
