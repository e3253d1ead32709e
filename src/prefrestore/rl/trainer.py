"""DiffusionNFT (arXiv 2509.16117) on low-rank adapters: sample, judge, update, look, repeat (reference-method 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefrestore.config import AlignConfig
from prefrestore.models.adapters import (
    TRAINED_ROLES,
    Role,
    policy_parameters,
    role_tensors,
    set_role,
    using_role,
)
from prefrestore.models.condition import Condition, PreparedCondition, grouped
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rewards.composite import CompositeReward
from prefrestore.rl.batches import first_noise, judge, put_noise, update_rows
from prefrestore.rl.guard import Guard, Watch
from prefrestore.rl.live import LiveView
from prefrestore.rl.nft_loss import deviation, nft_loss, normalised_error, spread, total_loss
from prefrestore.rl.pool import epoch_rows
from prefrestore.rl.rollout import Restorer, collect
from prefrestore.rl.schedules import old_decay
from prefrestore.rl.types import Noised, Rollout, TrainingBatch
from prefrestore.runtime.checkpoint import (
    Checkpoint,
    Checkpoints,
    pack_optimizer,
    prefixed,
    select,
    unpack_optimizer,
)
from prefrestore.runtime.crew import Crew
from prefrestore.runtime.distributed import is_writer
from prefrestore.runtime.ema import ema_decay
from prefrestore.runtime.progress import track
from prefrestore.runtime.seeding import be_deterministic

History = list[dict[str, float]]
CURVE_ROWS = 200


@dataclass(frozen=True)
class Aligned:
    """What a run gives: the kept weights, the curve (a row per epoch), and what the guard saw."""

    tensors: Mapping[str, Tensor]
    history: History
    watch: Watch


class MicroBatch:
    """Samples that one forward takes, and what their conditions are to each role during one update.

    What the base makes of a condition is computed once for all samples of a face, roles and noise levels; the keys
    and values of roles that stand still, too. The policy's take gradients: its low-rank term is added every time.
    """

    def __init__(self, pipeline: PrefRestorePipeline, rows: Sequence[int], condition: Condition) -> None:
        self.rows = rows
        self._pipeline = pipeline
        self._projected = pipeline.generator.project(condition)
        self._fixed: dict[Role, PreparedCondition] = {}

    def policy_velocity(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Return the policy's velocity [B, C, h, w], with gradient."""
        return self._pipeline.velocity(x_t, sigma, self._pipeline.prepare(self._projected))

    @torch.no_grad()
    def fixed_velocity(self, role: Role, sample: Noised) -> Tensor:
        """Return the velocity of a role that is not trained."""
        with using_role(self._pipeline, role):
            if role not in self._fixed:
                self._fixed[role] = self._pipeline.prepare(self._projected)
            return self._pipeline.velocity(sample.x_t, sample.sigma, self._fixed[role])


class Trainer:
    """Everything that changes during alignment, and the two ways it changes: an update and the end of an epoch.

    The pipeline must carry the roles of ``adapters.add_roles``. Of several processes each takes its part of every
    update's samples; all take the same steps.
    """

    def __init__(self, restorer: Restorer, config: AlignConfig, watch: Watch, crew: Crew | None = None) -> None:
        self.crew = crew or Crew()
        self.restorer = restorer
        self.pipeline = restorer.pipeline
        self.config = config
        self.watch = watch
        self.step = 0
        self.history: History = []
        self.terms: History = []
        self.parameters = policy_parameters(self.pipeline)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay
        )
        self.best = self._copy("ema")

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.config.updates

    def update(self, batch: TrainingBatch, epoch: int, number: int) -> None:
        """Take one optimizer step on one share of an epoch's groups; log its terms.

        Raises:
            UserError: the update's samples cannot be cut evenly over the processes.
        """
        rows = update_rows(batch, self.config, epoch, number)
        count = float(batch.weight[rows].sum()) * self.config.timesteps
        rows = rows[self.crew.part.of(len(rows))]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        if count:
            for start in range(0, len(rows), self.config.batch_size):
                part = self._micro_batch(batch, rows[start : start + self.config.batch_size])
                found = [self.accumulate(batch, part, epoch, level, count) for level in range(self.config.timesteps)]
                if self.config.spread_weight:
                    found.append(self.accumulate_spread(batch, part, epoch, count / self.config.timesteps))
                for terms in found:
                    for name, value in terms.items():
                        sums[name] = sums.get(name, 0.0) + value
            self.crew.sum_tensors([value.grad for value in self.parameters if value.grad is not None])
        self.step += 1
        self.terms.append({**self.crew.sum_terms(sums), **self._take_step()})

    def _micro_batch(self, batch: TrainingBatch, rows: Sequence[int]) -> MicroBatch:
        faces, _ = grouped(batch.rows[rows].tolist())
        return MicroBatch(self.pipeline, rows, self.restorer.conditions.rows(faces))

    def accumulate(
        self, batch: TrainingBatch, part: MicroBatch, epoch: int, level: int, count: float
    ) -> dict[str, float]:
        """Add a micro-batch's gradient of the mean loss over ``count`` noised samples; return its part of each term."""
        sample = put_noise(batch, part.rows, self.config, epoch, level)
        weight = batch.weight[part.rows].to(sample.x0.device)
        old = part.fixed_velocity("old", sample)
        policy = part.policy_velocity(sample.x_t, sample.sigma)
        optimality = batch.optimality[part.rows].to(old.device)
        # the published factor: its advantages are scaled back from [-1, 1] to [-clip, clip]
        loss = self.config.advantage_clip * nft_loss(policy, old, sample, optimality, self.config.nft_beta)
        terms = {
            "loss_policy": loss,
            "sft_error": normalised_error(policy.detach(), sample).flatten(1).mean(1),
            "policy_old_deviation": deviation(policy.detach(), old),
        }
        kl = torch.zeros_like(loss)
        if self._runs_ref(level):
            ref = part.fixed_velocity("ref", sample)
            # the mean over all levels, estimated from some
            scale = self.config.timesteps / self.config.kl_timesteps
            kl = scale * deviation(policy, ref)
            terms |= {"policy_ref_deviation": kl, "old_ref_deviation": scale * deviation(old, ref)}
        (total_loss(loss, self.config.kl_weight * kl, weight) / count).backward()
        return {name: float((value.detach() * weight).sum()) / count for name, value in terms.items()}

    def accumulate_spread(self, batch: TrainingBatch, part: MicroBatch, epoch: int, count: float) -> dict[str, float]:
        """Add a micro-batch's gradient of the mean spread over ``count`` samples; return its part of the term."""
        weight = batch.weight[part.rows].to(batch.x0.device)
        noises = [first_noise(batch, part.rows, self.config, epoch, which).to(weight.device) for which in (0, 1)]
        start = torch.ones(len(part.rows), device=weight.device)
        velocities = [part.policy_velocity(noise, start) for noise in noises]
        found = (spread(velocities, noises) * weight).sum() / count
        (self.config.spread_weight * found).backward()
        return {"first_spread": float(found.detach())}

    def _runs_ref(self, level: int) -> bool:
        """Return whether this level takes its turn to run ref: ``kl_timesteps`` of the levels do, in rotation."""
        return (level - self.step * self.config.kl_timesteps) % self.config.timesteps < self.config.kl_timesteps

    @torch.no_grad()
    def _take_step(self) -> dict[str, float]:
        """Clip and apply the gradient, move the average; a gradient that is absent or not finite changes nothing."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not norm.isfinite() or norm == 0:
            return {"skipped_updates": 1.0}
        self.optimizer.step()
        decay = ema_decay(self.step, self.config.ema_decay)
        self._follow("ema", decay)
        return {"grad_norm": float(norm), "ema_decay": decay}

    @torch.no_grad()
    def _follow(self, role: Role, decay: float) -> None:
        """role <- decay * role + (1 - decay) * policy."""
        policy = role_tensors(self.pipeline, "policy")
        for name, value in role_tensors(self.pipeline, role).items():
            value.lerp_(policy[name], 1 - decay)

    def end_epoch(self, row: Mapping[str, float], guard: Guard, live: LiveView) -> None:
        """Move the old policy, look at the held-out faces when it is time, write the epoch's row."""
        decay = old_decay(self.config.old_decay, self.step)
        self._follow("old", decay)
        look = (
            self.crew.from_writer(lambda: guard.measure("ema")) if guard.due(self.epoch, self.config.epochs) else None
        )
        if look:
            self.watch = guard.judge(self.watch, look.values, self.epoch)
            if self.watch.best_epoch == self.epoch:
                self.best = self._copy("ema")
        told = {**row, **_means(self.terms), "old_decay": decay, **_named("held_out", look.values if look else {})}
        self.history.append({"step": self.epoch, **{name: v for name, v in told.items() if math.isfinite(v)}})
        self.terms = []
        if is_writer():
            live.tell(self.history)
            if look:
                live.show(self.history, look.images, self.epoch)

    def _copy(self, role: Role) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in role_tensors(self.pipeline, role).items()}

    def checkpoint(self) -> Checkpoint:
        """Return the whole state, in the middle of an epoch too: rollouts are drawn again, exactly."""
        tensors = {**prefixed(self.best, "best"), **pack_optimizer(self.optimizer, "optimizer")}
        for role in TRAINED_ROLES:
            tensors |= prefixed(role_tensors(self.pipeline, role), role)
        state = {"history": self.history, "terms": self.terms, "watch": self.watch.state()}
        return Checkpoint(self.step, tensors, state)

    def resume(self, saved: Checkpoint) -> None:
        """Take over a saved state."""
        for role in TRAINED_ROLES:
            set_role(self.pipeline, role, select(saved.tensors, role))
        unpack_optimizer(self.optimizer, saved.tensors, "optimizer")
        self.best = select(saved.tensors, "best")
        self.step = saved.step
        self.history, self.terms = list(saved.state["history"]), list(saved.state["terms"])
        self.watch = Watch(**saved.state["watch"])


@dataclass(frozen=True)
class Surroundings:
    """What a run looks at besides its own state: the reward, the guard, the live view, the checkpoints."""

    reward: CompositeReward
    guard: Guard
    live: LiveView
    checkpoints: Checkpoints


def align(restorer: Restorer, around: Surroundings, config: AlignConfig) -> Aligned:
    """Train the policy, from the newest checkpoint on if there is one; the pipeline must carry its roles.

    Raises:
        UserError: there are fewer LQ images than groups, or the base cannot be judged.
    """
    be_deterministic()
    crew = Crew()
    saved = around.checkpoints.latest()
    if saved:
        trainer = Trainer(restorer, config, Watch(**saved.state["watch"]), crew)
        trainer.resume(saved)
    else:
        base = crew.from_writer(lambda: around.guard.measure("ref"))
        trainer = Trainer(restorer, config, around.guard.start(base.values), crew)
        if is_writer():
            around.live.show([], base.images, 0)
    epochs = range(trainer.epoch, config.epochs)
    for epoch in track(epochs, "align", total=config.epochs, initial=trainer.epoch, unit="epoch"):
        if trainer.watch.stopped:
            break
        train_epoch(trainer, around, epoch)
    if is_writer():
        around.live.end(trainer.history, {"kept_epoch": trainer.watch.best_epoch, "stopped": trainer.watch.stopped})
    return Aligned(trainer.best, thin(trainer.history), trainer.watch)


def train_epoch(trainer: Trainer, around: Surroundings, epoch: int) -> None:
    """Draw and judge an epoch's rollout, and take those of its updates that were not taken before."""
    config = trainer.config
    rows = epoch_rows(len(trainer.restorer.pool), config.groups, config.seed, epoch)
    judged = judge(rollout(trainer, around.reward, epoch, rows), around.reward, config)
    for number in range(trainer.step % config.updates, config.updates):
        trainer.update(judged.batch, epoch, number)
        last = number + 1 == config.updates
        if last:
            trainer.end_epoch(judged.row, around.guard, around.live)
        if is_writer() and (trainer.step % config.checkpoint_every == 0 or (last and epoch + 1 == config.epochs)):
            around.checkpoints.save(trainer.checkpoint())


def rollout(trainer: Trainer, reward: CompositeReward, epoch: int, rows: Sequence[int]) -> Rollout:
    """Let each process sample and judge its part of an epoch's groups; return all of them, in the order of ``rows``.

    Raises:
        UserError: the groups cannot be cut evenly over the processes.
    """
    crew = trainer.crew
    own = collect(trainer.restorer, reward, trainer.config, epoch, rows[crew.part.of(len(rows))])
    if crew.part.count == 1:
        return Rollout(tuple(own))
    return Rollout(tuple(group.to(crew.device) for group in crew.gather([group.to("cpu") for group in own])))


def thin(history: History) -> History:
    """Return at most about 200 rows, evenly taken, the last one among them."""
    every = math.ceil(len(history) / CURVE_ROWS) or 1
    return [row for place, row in enumerate(history) if (len(history) - 1 - place) % every == 0]


def _means(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each term over the updates that have it; skipped updates are counted."""
    names = sorted({name for row in terms for name in row})
    found = {name: [row[name] for row in terms if name in row] for name in names}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {**means, "skipped_updates": float(len(found.get("skipped_updates", [])))}


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
