"""An epoch of alignment against the reference schedule, on the same weights, LQ images, groups and rewards.

Measured for one group: conditions, sampling, decoding, rewards, training. An epoch is the preset's number of groups.
Of the reference's 29 equal solver steps and 29 equal noise levels one each is measured and counted 29 times; its
conditions are measured in the published batch of 9 copies. Both ways' gradients on the same noised samples are
compared. Prints processor time and FLOPs of each part (dlib's FLOPs are not counted), writes JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import reference_schedule as reference
import torch
from side_by_side import PRESETS, Cost, compare, parser_of, random_restorer, table, total
from torch import Tensor

from prefrestore import artifacts, configfile
from prefrestore.config import AlignConfig
from prefrestore.data.portraits import render
from prefrestore.models.adapters import add_roles, policy_parameters, role_tensors
from prefrestore.models.condition import Condition
from prefrestore.models.lpips import Lpips
from prefrestore.rewards.composite import CompositeReward
from prefrestore.rewards.faces import FaceReader, IdentityReward, LandmarksReward
from prefrestore.rewards.lpips import LpipsReward
from prefrestore.rewards.structure import StructureReward
from prefrestore.rl.batches import put_noise
from prefrestore.rl.guard import Watch
from prefrestore.rl.pool import ENCODED_TOGETHER, ConditionCache
from prefrestore.rl.rollout import Restorer, solver
from prefrestore.rl.trainer import MicroBatch, Trainer
from prefrestore.rl.types import FacePool, TrainingBatch

IMAGE, EXACT = 512, 1e-4
PUBLISHED_STEPS, PUBLISHED_BATCH = 29, 9


def faces(count: int) -> FacePool:
    """Return drawn portraits; LQ is HQ with every eighth pixel repeated."""
    drawn = [render(index, IMAGE, seed=0) for index in range(count)]
    hq = np.stack([portrait.image for portrait in drawn])
    lq = hq[:, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)
    landmarks = np.stack([portrait.landmarks for portrait in drawn])
    return FacePool(tuple(f"face-{index}/0" for index in range(count)), lq, hq, ("",) * count, landmarks)


def rewards() -> CompositeReward:
    """Return the full-reference rewards; LPIPS has random weights, which take as long."""
    reader = FaceReader(1)
    network = Lpips().eval().requires_grad_(False)
    parts = (StructureReward(), IdentityReward(reader), LandmarksReward(reader), LpipsReward(Path("unused"), network))
    return CompositeReward(parts, {}, reader)


@dataclass(frozen=True)
class Group:
    """What both ways share: the trainer with its restorer, and one group's samples."""

    trainer: Trainer
    config: AlignConfig
    batch: TrainingBatch

    @property
    def size(self) -> int:
        """K."""
        return self.config.group_size

    @property
    def restorer(self) -> Restorer:
        """Return what draws restorations."""
        return self.trainer.restorer


def make_group(preset: str, quick: bool, group_size: int | None) -> Group:
    """Return one group of the preset's alignment with random latents and rewards; roles differ from each other."""
    config = configfile.load(PRESETS / f"{preset}.yaml").align
    config = config.model_copy(update={"updates": config.groups, "group_size": group_size or config.group_size})
    pipeline = random_restorer(preset, IMAGE, quick)
    add_roles(pipeline, config.lora, config.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in ("policy", "old"):
            for value in role_tensors(pipeline, role).values():
                value.add_(0.02 * torch.randn(value.shape, generator=generator))
    pool = faces(ENCODED_TOGETHER)
    restorer = Restorer(pipeline, pool, ConditionCache(pipeline, pool), solver(config), config.batch_size)
    size = config.group_size
    batch = TrainingBatch(
        x0=torch.randn(size, *pipeline.latent_shape, generator=generator),
        rows=torch.zeros(size, dtype=torch.int64),
        group_ids=(pool.ids[0],) * size,
        members=torch.arange(size),
        optimality=torch.rand(size, 1, 1, 1, generator=generator),
        weight=torch.ones(size),
    )
    return Group(Trainer(restorer, config, Watch({}, 0, 0.0)), config, batch)


def copied(group: Group) -> Condition:
    """Return the condition of the group's image, once for every sample, as the reference has it."""
    return group.restorer.conditions.rows([0]).select([0] * group.size)


def reference_level(group: Group, level: int) -> None:
    """Add the gradient of one noise level in the reference's way."""
    sample = put_noise(group.batch, range(group.size), group.config, 0, level)
    loss = reference.nft_level(group.restorer.pipeline, copied(group), sample, group.batch.optimality, group.config)
    loss.backward()


def our_levels(group: Group, levels: int) -> None:
    """Add the gradient of the first noise levels in our way, as an update does."""
    rows = range(group.size)
    part = MicroBatch(group.restorer.pipeline, rows, group.restorer.conditions.rows([0]))
    for level in range(levels):
        group.trainer.accumulate(group.batch, part, 0, level, float(group.size))


def gradient(group: Group) -> Tensor:
    """Return the policy's gradient, laid end to end, and forget it."""
    parameters = policy_parameters(group.restorer.pipeline)
    flat = torch.cat([value.grad.flatten() for value in parameters if value.grad is not None])
    for value in parameters:
        value.grad = None
    return flat


def apart(group: Group) -> float:
    """Return how far both ways' gradients of one level are apart, of their length; with the KL term in both."""
    every = group.config.model_copy(update={"kl_timesteps": group.config.timesteps})
    trainer = Trainer(group.restorer, every, group.trainer.watch)
    same = replace(group, trainer=trainer, config=every)
    reference_level(same, 0)
    old = gradient(same)
    our_levels(same, 1)
    new = gradient(same)
    return float((old - new).norm() / old.norm())


def conditions(group: Group, copies: int, repeats: int) -> dict[str, Cost]:
    """Cost of a group's conditions: one per copy in batches of ``copies``, against one per image in blocks."""
    pool, pipeline = group.restorer.pool, group.restorer.pipeline
    lq = pool.references([0] * copies).lq
    found = compare(
        {
            "reference": lambda: reference.condition_of(pipeline, lq, [""] * copies),
            "ours": lambda: ConditionCache(pipeline, pool).rows([0]),
        },
        repeats,
    )
    return {"reference": times(found["reference"], group.size / copies), "ours": times(found["ours"], 1 / len(pool))}


def sampling(group: Group, repeats: int) -> dict[str, Cost]:
    """Cost of drawing a group's latents."""
    pipeline, condition = group.restorer.pipeline, copied(group)
    noise = pipeline.initial_noise(range(group.size))
    found = compare(
        {
            "reference": lambda: reference.sample(pipeline, condition, noise, 1, 1.0),
            "ours": lambda: group.restorer.latents("old", [0] * group.size, range(group.size)),
        },
        repeats,
    )
    return {**found, "reference": times(found["reference"], PUBLISHED_STEPS)}


def judging(group: Group, repeats: int) -> dict[str, Cost]:
    """Cost of a group's rewards: HQ looked at again for every sample, against once; nothing is remembered before."""
    images = group.restorer.images(group.batch.x0)
    references = group.restorer.pool.references([0] * group.size)

    def alone() -> None:
        for row in range(group.size):
            with rewards() as scorer:
                scorer.parts(images[row : row + 1], group.restorer.pool.references([0]))

    def together() -> None:
        with rewards() as scorer:
            scorer.parts(images, references)

    return compare({"reference": alone, "ours": together}, repeats)


def training(group: Group, repeats: int) -> dict[str, Cost]:
    """Cost of a group's share of the updates."""
    found = compare(
        {
            "reference": lambda: reference_level(group, 0),
            "ours": lambda: our_levels(group, group.config.timesteps),
        },
        repeats,
    )
    return {**found, "reference": times(found["reference"], PUBLISHED_STEPS)}


def times(cost: Cost, factor: float) -> Cost:
    """Return the cost of ``factor`` such runs."""
    return Cost(cost.flops * factor, cost.seconds * factor)


def main() -> None:
    """Run the comparison."""
    parser = parser_of(__doc__, "rl_epoch")
    parser.add_argument("--group-size", type=int, help="samples per image (default: the preset's)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    group = make_group(options.preset, options.quick, options.group_size)
    config = group.config
    print(
        f"preset {options.preset}: an epoch of {config.groups} groups of {group.size}, {options.threads} thread(s); "
        f"ours: {config.sampler_steps} solver steps, {config.timesteps} levels, ref at {config.kl_timesteps} of them"
    )
    distance = apart(group)
    print(f"gradients of one level apart by {distance:.2g}" + ("" if distance <= EXACT else "   NOT EQUAL"))
    decoding = compare(
        {way: lambda: group.restorer.images(group.batch.x0) for way in ("reference", "ours")}, options.repeats
    )
    parts = {
        "conditions": conditions(group, min(PUBLISHED_BATCH, group.size), options.repeats),
        "sampling": sampling(group, options.repeats),
        "decoding": decoding,
        "rewards": judging(group, options.repeats),
        "training": training(group, options.repeats),
    }
    epoch = {
        name: {way: times(cost, config.groups) for way, cost in costs.items()}
        for name, costs in {**parts, "epoch": total(parts)}.items()
    }
    rows = table(epoch)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, {"rows": rows, "gradients_apart": distance, "group_size": group.size})


if __name__ == "__main__":
    main()
