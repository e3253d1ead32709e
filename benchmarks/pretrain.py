"""A step of the second pretraining step against the reference schedule, on the same weights, images and noise.

Forward and backward; what we compute once per pair (HQ's latent and ids, queries) is left out of our step and told
apart. Prints processor time and FLOPs, and how far loss and gradients are apart. Writes JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

import reference_schedule as reference
import torch
from reference_schedule import Step2Batch
from side_by_side import compare, flops_of, parser_of, random_restorer, table
from torch import Tensor

from prefrestore import artifacts
from prefrestore.diffusion.flow import flow_matching_loss, interpolate
from prefrestore.models.integrator import teacher_forced
from prefrestore.models.pipeline import PrefRestorePipeline

IMAGE, EXACT = 512, 1e-4


@dataclass(frozen=True)
class Cached:
    """What pretraining keeps of every pair: queries [B, n + 1, D], text states [B, 2D], HQ's latent [B, C, h, w]."""

    queries: Tensor
    text: Tensor
    latents: Tensor


@torch.no_grad()
def cache(pipeline: PrefRestorePipeline, batch: Step2Batch) -> Cached:
    """Compute what is kept, on HQ's ids as the reference does."""
    prompt = pipeline.prompts(pipeline.image_tokenizer.ids(batch.lq), batch.texts)
    decoded = teacher_forced(pipeline.integrator, prompt, pipeline.image_tokenizer.ids(batch.hq))
    return Cached(decoded.queries, decoded.text, pipeline.encode(batch.hq))


def step2_loss(pipeline: PrefRestorePipeline, batch: Step2Batch, kept: Cached) -> Tensor:
    """Return step 2's loss from what is kept."""
    spatial = pipeline.lq_encoder(batch.lq)
    condition = pipeline.join(kept.queries, spatial, kept.text)
    velocity = pipeline.velocity(interpolate(kept.latents, batch.noise, batch.sigma), batch.sigma, condition)
    return flow_matching_loss(velocity, kept.latents, batch.noise) + (spatial - kept.latents).square().mean()


def draw(pipeline: PrefRestorePipeline, count: int) -> Step2Batch:
    """Return a random batch."""
    generator = torch.Generator().manual_seed(1)
    lq, hq = (torch.rand(count, 3, IMAGE, IMAGE, generator=generator) for _ in range(2))
    noise = torch.randn(count, *pipeline.latent_shape, generator=generator)
    return Step2Batch(lq, hq, noise, torch.rand(count, generator=generator), [""] * count)


def gradients(pipeline: PrefRestorePipeline, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient by all trained parameters, laid end to end."""
    modules = (pipeline.connectors, pipeline.generator, pipeline.lq_encoder)
    parameters = [value for module in modules for value in module.parameters() if value.requires_grad]
    for value in parameters:
        value.grad = None
    loss.backward()
    return loss.detach(), torch.cat([value.grad.flatten() for value in parameters if value.grad is not None])


def main() -> None:
    """Run the comparison."""
    parser = parser_of(__doc__, "pretrain")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = random_restorer(options.preset, IMAGE, options.quick)
    pipeline.integrator.requires_grad_(False)
    batch = draw(pipeline, options.batch)
    kept = cache(pipeline, batch)
    old = gradients(pipeline, reference.step2_loss(pipeline, batch))
    new = gradients(pipeline, step2_loss(pipeline, batch, kept))
    apart = {
        "loss": float((old[0] - new[0]).abs()),
        "gradient": float((old[1] - new[1]).norm() / old[1].norm()),
    }
    print(f"preset {options.preset}, batch {options.batch}, {options.threads} thread(s)")
    for name, value in apart.items():
        print(f"  {name:<9} apart by {value:.2g}" + ("" if value <= EXACT else "   NOT EQUAL"))
    costs = compare(
        {
            "reference": lambda: gradients(pipeline, reference.step2_loss(pipeline, batch)),
            "ours": lambda: gradients(pipeline, step2_loss(pipeline, batch, kept)),
        },
        options.repeats,
    )
    rows = table({"step 2": costs})
    once = flops_of(lambda: cache(pipeline, batch))
    saved = rows["step 2"]["reference_flops"] - rows["step 2"]["ours_flops"]
    print(f"kept of every pair, once: {once / 1e9:.1f} GF, as much as {once / saved:.2f} steps on it save")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, {"rows": rows, "apart": apart, "kept_flops": once})


if __name__ == "__main__":
    main()
