"""One restoration against the reference schedule on the same weights: condition, generator, codec, total.

Prints processor time and FLOPs of each part, whether results are equal, what eight samples of one face cost, and what
fewer steps give. With ``--base`` and ``--pairs`` it also measures what fewer steps cost in quality. Writes JSON.
"""

from __future__ import annotations

from pathlib import Path

import plainly
import reference_schedule as reference
import torch
from side_by_side import Cost, compare, flops_of, parser_of, random_restorer, table, total
from torch import Tensor

from prefrestore import artifacts
from prefrestore.data.pairs import load_pairs, to_tensor
from prefrestore.diffusion.sampler import Sampler
from prefrestore.models.condition import Condition
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rewards.base import References
from prefrestore.rewards.structure import StructureReward
from prefrestore.rl.guard import psnr

IMAGE, STEPS, SAMPLES, EXACT = 512, 30, 8, 1e-4


def euler(pipeline: PrefRestorePipeline, condition: Condition, noise: Tensor, steps: int, guidance: float) -> Tensor:
    """Return latents by our sampler with the reference's solver, the condition prepared once."""
    return Sampler(steps, "euler")(pipeline.velocity_function(condition, guidance), noise)


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((first - second).abs().max())


@torch.no_grad()
def equality(pipeline: PrefRestorePipeline, lq: Tensor, noise: Tensor, steps: int, guidance: float) -> dict[str, float]:
    """Print and return how far both ways' results are apart, stage by stage and from end to end."""
    decoded, tokens = reference.condition_of(pipeline, lq, [""])
    ours = pipeline.integrate(lq, [""])
    condition = pipeline.join(ours.queries, pipeline.lq_encoder(lq), ours.text)
    old = reference.sample(pipeline, Condition(tokens, condition.spatial, condition.text), noise, steps, guidance)
    new = euler(pipeline, condition, noise, steps, guidance)
    apart = {
        "ids that differ": float((decoded.ids != ours.ids).sum()),
        "queries": difference(decoded.queries, ours.queries),
        "condition tokens": difference(tokens, condition.tokens),
        "latents": difference(old, new),
        "images": difference(pipeline.decode(old), pipeline.decode(new)),
    }
    print(f"largest differences ({len(ours.ids.unique())} different ids decoded; {EXACT:g} allowed):")
    for name, value in apart.items():
        print(f"  {name:<18} {value:.2g}" + ("" if value <= EXACT else "   NOT EQUAL"))
    return apart


@torch.no_grad()
def parts(
    pipeline: PrefRestorePipeline, lq: Tensor, noise: Tensor, steps: int, guidance: float, repeats: int
) -> dict[str, dict[str, Cost]]:
    """Return the cost of every part, and of our default sampler."""
    condition = pipeline.encode_condition(lq, [""])
    return {
        "condition": compare(
            {
                "reference": lambda: reference.condition_of(pipeline, lq, [""]),
                "ours": lambda: pipeline.encode_condition(lq, [""]),
            },
            repeats,
        ),
        "generator": compare(
            {
                "reference": lambda: reference.sample(pipeline, condition, noise, steps, guidance),
                "ours": lambda: euler(pipeline, condition, noise, steps, guidance),
                "default sampler": lambda: pipeline.sample(condition, noise, guidance=guidance),
            },
            repeats,
        ),
        # the same in both ways
        "codec": compare(
            {"reference": lambda: pipeline.decode(noise), "ours": lambda: pipeline.decode(noise)}, repeats
        ),
    }


def told_sampler(costs: dict[str, dict[str, Cost]], steps: int) -> float:
    """Print and return how much faster a restoration is by fewer steps."""
    generator, both = costs["generator"], total(costs)
    rest = both["ours"].seconds - generator["ours"].seconds
    faster = both["reference"].seconds / (rest + generator["default sampler"].seconds)
    print(f"default sampler ({steps} steps of DPM-Solver++ 2M): {faster:.2f}x in total")
    return faster


@torch.no_grad()
def told_samples(pipeline: PrefRestorePipeline, lq: Tensor, noise: Tensor) -> dict[str, float]:
    """Print and return the FLOPs of eight samples of one face, in those of a condition and of a generator run."""
    condition = pipeline.encode_condition(lq, [""])
    prepared = pipeline.prepare(condition)
    once = flops_of(lambda: pipeline.encode_condition(lq, [""])) + flops_of(lambda: pipeline.prepare(condition))
    run = flops_of(lambda: pipeline.sample(prepared, noise, 2))
    many = noise.expand(SAMPLES, -1, -1, -1)
    together = flops_of(lambda: pipeline.sample(pipeline.encode_condition(lq, [""]), many, 2))
    runs = (together - once) / run
    print(f"{SAMPLES} samples of one face: one condition ({once / 1e9:.1f} GF) and {runs:.3f} generator runs")
    return {"condition_flops": once, "run_flops": run, "together_flops": together}


@torch.no_grad()
def quality(base: Path, folder: Path, steps: int, faces: int) -> dict[str, dict[str, float]]:
    """Print and return what a trained restorer loses by its default sampler against ``steps`` Euler steps."""
    pipeline = PrefRestorePipeline.from_pretrained(base)
    pairs = load_pairs(folder, "eval")
    lq, hq = to_tensor(pairs.lq[:faces, 0]), to_tensor(pairs.hq[:faces])
    condition = pipeline.prepare(pipeline.encode_condition(lq, list(pairs.captions[: len(lq)])))
    noise = pipeline.initial_noise(range(len(lq)))
    references = References(
        lq=lq, hq=hq, texts=[""] * len(lq), landmarks=pairs.landmarks[:faces], ids=pairs.ids[:faces]
    )
    rows = {}
    for name, sampler in (
        (f"{steps} Euler steps", Sampler(steps, "euler")),
        (f"{pipeline.sampler_steps} steps, default", Sampler(pipeline.sampler_steps)),
    ):
        images = pipeline.decode(sampler(pipeline.velocity_function(condition), noise))
        values = {"psnr": psnr(images, hq), "structure": StructureReward().score(images, references)}
        rows[name] = {key: float(value.mean()) for key, value in values.items()}
        spread = float(values["psnr"].std() / len(lq) ** 0.5)
        print(
            f"  {name:<20} psnr {rows[name]['psnr']:.3f} dB (+- {spread:.2f}), structure {rows[name]['structure']:.4f}"
        )
    return rows


def main() -> None:
    """Run the comparison."""
    parser = parser_of(__doc__, "restore")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--base", type=Path, help="trained restorer, to measure what fewer steps cost in quality")
    parser.add_argument("--pairs", type=Path, help="the pairs it is measured on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = random_restorer(options.preset, IMAGE, options.quick)
    steps = 4 if options.quick else options.steps
    lq = torch.rand(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    noise = pipeline.initial_noise([0])
    print(f"preset {options.preset}, {steps} steps, guidance {options.guidance}, {options.threads} thread(s)")
    apart = equality(pipeline, lq, noise, steps, options.guidance)
    costs = parts(pipeline, lq, noise, steps, options.guidance, options.repeats)
    rows = table({**costs, "total": total(costs)})
    faster = told_sampler(costs, pipeline.sampler_steps)
    samples = told_samples(pipeline, lq, noise)
    results = {"rows": rows, "apart": apart, "default_sampler": faster, "samples": samples}
    if options.base and options.pairs:
        results["quality"] = quality(options.base, options.pairs, steps, 48)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(options.json, results)


if __name__ == "__main__":
    plainly.run(main)
