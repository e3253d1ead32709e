"""Weights that ship with the package: base and adapter in half precision, a release like any other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from prefrestore import artifacts
from prefrestore.errors import UserError
from prefrestore.registry import card, release

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from prefrestore.models.pipeline import PrefRestorePipeline

SHIPPED = Path(__file__).parents[1] / "weights" / "portrait"
"""Where they lie; it may be absent."""
MAX_BYTES = 40_000_000
"""Of all files together: what a package may weigh."""
TEMPLATE = Path(__file__).with_name("shipped_card.md.j2")
CALIBRATION = "uncertainty.json"
"""What the program reads of an evaluation when it restores."""


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: where.
        size: bytes of all files.
        digest: of the release.
    """

    folder: Path
    size: int
    digest: str


def shipped_address() -> str:
    """Return the address of the weights that ship, for ``loader.resolve``.

    Raises:
        UserError: there are none in this copy of the package.
    """
    if not (SHIPPED / artifacts.MANIFEST).is_file():
        raise UserError(
            f"no weights ship with this copy of prefrestore ({SHIPPED} has none): name a model with --model, or write "
            "some there with `prefrestore model ship`"
        )
    return str(SHIPPED)


def ship(  # noqa: PLR0913  the parts of a release, and how it restores
    base: Path,
    policy: Path,
    out: Path,
    metrics: Path | None = None,
    calibration: Path | None = None,
    steps: int | None = None,
) -> Report:
    """Write base and adapter in half precision into a folder, as a release with a card.

    Args:
        base: artifact ``base``.
        policy: artifact ``policy``, trained on that base.
        out: the folder; what stands there is replaced if it is a release.
        metrics: artifact ``metrics``, or what ``prefrestore evaluate`` wrote; its figures go into the card.
        calibration: the same, of an evaluation in the steps in which samples are compared: its curve from spread to
            error is shipped; None: that of ``metrics``.
        steps: sampling steps of the shipped pipeline where none are asked for; None: the base's own.

    Raises:
        UserError: one of them is missing or damaged, they do not belong together, a weight is too large for half
            precision, all is too large to ship, or ``out`` holds something else.
    """
    if out.exists() and not (out / artifacts.MANIFEST).is_file():
        raise UserError(f"{out}: exists and holds no release: choose another --out")
    for place, name in ((base, "--base"), (policy, "--policy")):
        if not place.is_dir():
            raise UserError(f"{name}: {place} is no folder: name the artifact")
    with tempfile.TemporaryDirectory(prefix="prefrestore-ship-") as temporary:
        parts = _parts(base, policy, metrics, Path(temporary), steps)
        measured = calibration or metrics
        if measured and (measured / CALIBRATION).is_file():
            parts = {**parts, f"metrics/{CALIBRATION}": measured / CALIBRATION}
        elif calibration:
            raise UserError(f"--calibration: {calibration / CALIBRATION} is missing: name what `evaluate` wrote")
        members = release.members(parts)
        size = sum(path.stat().st_size for path in members.values())
        if size > MAX_BYTES:
            raise UserError(
                f"{base}: {size / 1e6:.1f} MB in half precision with its adapter, at most {MAX_BYTES / 1e6:.0f} MB "
                "ship: take a smaller preset"
            )
        manifest = release.describe(parts)
        with artifacts.replacing(out) as folder:
            for name, source in members.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
            artifacts.write_json(folder / artifacts.MANIFEST, manifest)
    release.verify(out, release.digest(manifest))
    return Report(out, size, release.digest(manifest))


def _parts(base: Path, policy: Path, metrics: Path | None, folder: Path, steps: int | None) -> Mapping[str, Path]:
    """Write what is shipped into a folder; return its parts by name."""
    from prefrestore.models.adapters import load_policy, role_tensors
    from prefrestore.models.pipeline import PrefRestorePipeline

    pipeline = PrefRestorePipeline.from_pretrained(base)
    load_policy(pipeline, policy, artifacts.digest(base))
    adapter = {name: _half(name, value) for name, value in role_tensors(pipeline, "policy").items()}
    pipeline.unload_lora_weights()
    for name, value in _parameters(pipeline):
        value.data = _half(name, value)
    pipeline.register_to_config(sampler_steps=steps or pipeline.sampler_steps)
    pipeline.save_pretrained(folder / "base")
    _write_adapter(policy, folder / "policy", adapter, artifacts.digest(folder / "base"))
    figures = None if metrics is None else _figures(metrics)
    facts = {
        "size": pipeline.image_size,
        "parameters": sum(value.numel() for _, value in _parameters(pipeline)),
        "steps": pipeline.sampler_steps,
        "base": artifacts.digest(base),
        "policy": artifacts.digest(policy),
    }
    (folder / card.CARD).write_text(_card(facts, figures), encoding="utf-8")
    return {name: folder / name for name in ("base", "policy", card.CARD)}


def _parameters(pipeline: PrefRestorePipeline) -> list[tuple[str, Parameter]]:
    """Return all parameters with their names, in the order of the components."""
    from torch import nn

    modules = [(part, module) for part, module in pipeline.components.items() if isinstance(module, nn.Module)]
    return [(f"{part}.{name}", value) for part, module in modules for name, value in module.named_parameters()]


def _half(name: str, value: Tensor) -> Tensor:
    """Return a weight in half precision.

    Raises:
        UserError: it is too large for that.
    """
    half = value.detach().cpu().half().contiguous()
    if not half.isfinite().all():
        raise UserError(f"{name}: a weight is not finite in half precision (at most 65504): train again")
    return half


def _write_adapter(policy: Path, folder: Path, tensors: Mapping[str, Tensor], base_digest: str) -> None:
    from safetensors.torch import save_file

    from prefrestore.models.adapters import CARD, CONFIG, KEY_PREFIX, WEIGHTS

    folder.mkdir()
    stored = {f"{KEY_PREFIX}{name}": value for name, value in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(policy / CONFIG, folder / CONFIG)
    artifacts.write_json(folder / CARD, {"base_digest": base_digest})


def _figures(metrics: Path) -> dict[str, Any]:
    """Return what an evaluation measured, for the card.

    Raises:
        UserError: the folder holds none.
    """
    with artifacts.reading(metrics / "metrics.json"):
        measured = artifacts.read_json(metrics / "metrics.json")["columns"]
    with artifacts.reading(metrics / "metric_table.json"):
        table = artifacts.read_json(metrics / "metric_table.json")
        return {
            "columns": [table["columns"].get(name, name) for name in card.SHOWN if name in measured],
            "rows": list(card.metric_rows(measured, table["metrics"])),
            "faces": measured["policy"]["psnr"]["n"],
        }


def _card(facts: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    metadata = ModelCardData(
        model_name="prefrestore-portrait",
        library_name="prefrestore",
        pipeline_tag=card.TASK,
        tags=["face-restoration", "image-restoration", "diffusers", "lora"],
    )
    text = TEMPLATE.read_text(encoding="utf-8")
    made = ModelCard.from_template(metadata, template_str=text, facts=facts, figures=figures)
    return f"{str(made).rstrip()}\n"
