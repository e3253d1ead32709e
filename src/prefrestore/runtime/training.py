"""The training loop that every supervised trainer shares: schedule, clipping, EMA, checkpoints, curve.

It runs in one process or, started by ``torchrun`` or ``accelerate launch``, in several: each step's batch is cut into
``processes * accumulation`` equal parts, so schedule, data order and result (to rounding) are those of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefrestore.runtime.checkpoint import (
    Checkpoint,
    Checkpoints,
    pack_optimizer,
    prefixed,
    select,
    unpack_optimizer,
)
from prefrestore.runtime.crew import accelerator
from prefrestore.runtime.distributed import Part, is_writer
from prefrestore.runtime.ema import Ema
from prefrestore.runtime.progress import track
from prefrestore.runtime.seeding import be_deterministic
from prefrestore.runtime.sharding import cut_like, shard, whole

History = list[dict[str, float]]
StepLoss = Callable[[int, Part], dict[str, Tensor]]
"""Maps a step number and a part of its batch to named means over that part; ``loss`` is differentiated."""

CURVE_ROWS = 100
WARM_UP = 0.03
FINAL_RATE = 0.05


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Attributes:
        steps: optimizer steps.
        learning_rate: the highest of the schedule.
        checkpoint_every: steps between checkpoints.
        ema_decay: 0 keeps the last weights instead of an average.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        accumulation: parts of each process's share of a batch, worked on one after another: less memory.
        bfloat16: compute in bfloat16; weights, gradients, optimizer and average stay float32.
        sharded: classes of modules whose weights are cut over the processes (FSDP), and the rest's as well; they stay
            cut afterwards. None: every process holds all weights (DDP).
    """

    steps: int
    learning_rate: float
    checkpoint_every: int
    ema_decay: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulation: int = 1
    bfloat16: bool = False
    sharded: tuple[type[nn.Module], ...] = ()


def learning_rate(settings: FitSettings, step: int) -> float:
    """Return the rate of a step: linear warm-up over 3 %, then cosine down to 5 %."""
    warm_up = max(1, round(WARM_UP * settings.steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, settings.steps - warm_up)
    return settings.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def trainable_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters that take gradients, by module and name; a shared one stands once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{prefix}.{name}"] = parameter
    return found


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's weights are."""
    return next(module.parameters()).device


class _Curve:
    """Means of the logged values over equal stretches of steps; a pure function of the steps seen."""

    def __init__(self, steps: int, state: Mapping[str, Any] | None) -> None:
        self.every = max(1, steps // CURVE_ROWS)
        self.rows: History = list(state["rows"]) if state else []
        self.sums: dict[str, float] = dict(state["sums"]) if state else {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % self.every == 0:
            self.rows.append({"step": step + 1, **{name: total / self.every for name, total in self.sums.items()}})
            self.sums = {}

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "sums": self.sums}


class _Step(nn.Module):
    """A part of a training step as the forward pass of one module: what DDP and FSDP wrap."""

    def __init__(self, modules: Mapping[str, nn.Module], step_loss: StepLoss, settings: FitSettings) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(modules)
        self.step_loss = step_loss
        self.in_bfloat16 = settings.bfloat16

    def forward(self, step: int, part: Part) -> dict[str, Tensor]:
        with torch.autocast(device_of(self).type, torch.bfloat16, enabled=self.in_bfloat16):
            return self.step_loss(step, part)


def fit(
    name: str, modules: Mapping[str, nn.Module], step_loss: StepLoss, settings: FitSettings, checkpoints: Checkpoints
) -> History:
    """Train the modules' trainable parameters, from the newest checkpoint on if there is one.

    ``step_loss`` must be a pure function of step number, part and weights: then a resumed run is bit-equal to an
    uninterrupted one.

    Args:
        name: shown in the progress line.
        modules: what is trained, by name.
        step_loss: see :data:`StepLoss`.
        settings: see :class:`FitSettings`.
        checkpoints: where to save and resume.

    Returns:
        the training curve; the modules hold the final (averaged) weights.

    Raises:
        FloatingPointError: the loss is no finite number.
        UserError: a batch cannot be cut into equal parts.
    """
    be_deterministic()
    crew = accelerator()
    model = _over_processes(crew, _Step(modules, step_loss, settings), settings.sharded)
    parameters = trainable_parameters(modules)
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    ema = Ema(parameters, settings.ema_decay) if settings.ema_decay else None
    start, curve = _resume(parameters, optimizer, ema, settings, checkpoints)
    for step in track(range(start, settings.steps), name, total=settings.steps, initial=start, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        optimizer.zero_grad(set_to_none=True)
        values = _backward(crew, model, step, settings.accumulation)
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"{name}: the loss is {values['loss']} at step {step}")
        crew.clip_grad_norm_(parameters.values(), settings.clip)
        optimizer.step()
        if ema:
            ema.update(parameters)
        curve.add(step, values)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            packed = _pack(step + 1, parameters, optimizer, ema, curve)
            if is_writer():
                checkpoints.save(packed)
    if ema:
        ema.copy_to(parameters)
    return curve.rows


def _over_processes(crew: Accelerator, model: nn.Module, sharded: tuple[type[nn.Module], ...]) -> nn.Module:
    """Return a model whose gradients are means over all processes: replicated or, if there are several, cut."""
    if sharded and crew.num_processes > 1:
        return shard(model, sharded, crew.device)
    return crew.prepare_model(model)


def _backward(crew: Accelerator, model: nn.Module, step: int, accumulation: int) -> dict[str, float]:
    """Accumulate the gradient of a step over this process's parts; return means over all parts of all processes."""
    found: list[dict[str, Tensor]] = []
    for turn in range(accumulation):
        part = Part(crew.process_index * accumulation + turn, crew.num_processes * accumulation)
        with nullcontext() if turn + 1 == accumulation else crew.no_sync(model):
            values = model(step, part)
            (values["loss"] / accumulation).backward()
        found.append({name: value.detach().float() for name, value in values.items()})
    means = crew.reduce(torch.stack([torch.stack(list(values.values())) for values in found]).mean(0), "mean")
    return dict(zip(found[0], means.tolist(), strict=True))


def _pack(
    step: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, ema: Ema | None, curve: _Curve
) -> Checkpoint:
    tensors = {**prefixed(parameters, "weights"), **pack_optimizer(optimizer, "optimizer")}
    if ema:
        tensors |= prefixed(ema.shadow, "ema")
    return Checkpoint(step, {name: whole(value) for name, value in tensors.items()}, {"curve": curve.state()})


def _resume(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    settings: FitSettings,
    checkpoints: Checkpoints,
) -> tuple[int, _Curve]:
    latest = checkpoints.latest()
    if latest is None:
        return 0, _Curve(settings.steps, None)
    with torch.no_grad():
        for key, value in select(latest.tensors, "weights").items():
            parameters[key].copy_(cut_like(value, parameters[key]))
    unpack_optimizer(optimizer, latest.tensors, "optimizer")
    if ema:
        ema.updates = latest.step
        ema.shadow = {key: cut_like(value, parameters[key]) for key, value in select(latest.tensors, "ema").items()}
    return latest.step, _Curve(settings.steps, latest.state["curve"])
