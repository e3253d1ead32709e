"""Guard against reward hacking: held-out training faces, watched with measures the policy is not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from prefrestore.config import GuardConfig
from prefrestore.data.pairs import to_tensor
from prefrestore.errors import UserError
from prefrestore.models.adapters import Role
from prefrestore.rewards.composite import CompositeReward
from prefrestore.rewards.faces import IdentityReward
from prefrestore.rewards.sharpness import SharpnessReward
from prefrestore.rewards.structure import StructureReward
from prefrestore.rl.rollout import Restorer, spread, without_broken
from prefrestore.runtime.seeding import derive


@dataclass(frozen=True)
class Watch:
    """What the guard has seen so far.

    Attributes:
        base: the measures of the base.
        best_epoch: after how many epochs the kept policy stood; 0 is the base itself.
        best_score: its score (:func:`score`) on the held-out faces.
        breaches: looks in a row at which a measure was below its margin.
        stopped: why the run was ended, empty while it was not.
    """

    base: Mapping[str, float]
    best_epoch: int
    best_score: float
    breaches: int = 0
    stopped: str = ""

    def state(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What one look gives: means over faces and seeds, and one restoration [N, 3, H, W] of each face."""

    values: Mapping[str, float]
    images: Tensor


class Guard:
    """Measures a role on the held-out faces, always with the same noise, and judges it against the base."""

    def __init__(self, restorer: Restorer, reward: CompositeReward, config: GuardConfig, seed: int) -> None:
        self._restorer = restorer
        self._reward = reward
        self._config = config
        self._seed = seed
        self._watched = (IdentityReward(reward.reader), StructureReward(), SharpnessReward())

    def measure(self, role: Role) -> Look:
        """Return reward_total, identity, structure, sharpness, judge, psnr (dB), and spread of a role.

        What could not be judged on any face is left out.
        """
        pool, samples = self._restorer.pool, self._config.samples
        rows = [row for row in range(len(pool)) for _ in range(samples)]
        seeds = [derive("guard", self._seed, pool.ids[row], place % samples) for place, row in enumerate(rows)]
        latents, broken = without_broken(self._restorer.latents(role, rows, seeds))
        images, references = self._restorer.images(latents), pool.references(rows)
        values = {watched.name: watched.score(images, references) for watched in self._watched}
        values["reward_total"] = self._reward.totals(self._reward.parts(images, references))
        if self._reward.judge is not None:
            values["judge"] = self._reward.judge.score(images, references)
        values["psnr"] = psnr(images, to_tensor(pool.hq[rows]))
        values["spread"] = torch.tensor([spread(group) for group in images.split(samples)])
        if broken.any():
            # a policy that diverges is below every margin
            return Look(dict.fromkeys(values, -math.inf), images[::samples])
        means = {name: float(value.double().nanmean()) for name, value in values.items()}
        return Look({name: value for name, value in means.items() if not math.isnan(value)}, images[::samples])

    def start(self, base: Mapping[str, float]) -> Watch:
        """Begin with the base's measures.

        Raises:
            UserError: it diverges, or its faces cannot be judged at all.
        """
        if not math.isfinite(base.get("reward_total", math.nan)):
            raise UserError(
                "align: the base's restorations of the held-out faces cannot be judged: "
                "check base and reward, or hold out more faces (guard.faces)"
            )
        return Watch(base, 0, base["reward_total"])

    def due(self, epoch: int, epochs: int) -> bool:
        """Return whether to look after ``epoch`` of ``epochs`` epochs."""
        return epoch % self._config.every == 0 or epoch == epochs

    def judge(self, watch: Watch, values: Mapping[str, float], epoch: int) -> Watch:
        """Return what is known after a look at the policy that stood after ``epoch`` epochs.

        The best policy is the one of the highest score among those that keep every margin.
        """
        below = below_margin(values, watch.base, self._config.margins)
        if below:
            breaches = watch.breaches + 1
            stopped = ""
            if breaches >= self._config.patience:
                stopped = (
                    f"epoch {epoch}: {', '.join(below)} below base by more than the margin {breaches} times in a row"
                )
            return replace(watch, breaches=breaches, stopped=stopped)
        found = score(values, watch.base, self._config.certainty)
        if found > watch.best_score:
            watch = replace(watch, best_epoch=epoch, best_score=found)
        return replace(watch, breaches=0)


def score(values: Mapping[str, float], base: Mapping[str, float], certainty: float) -> float:
    """Return ``reward_total`` plus ``certainty`` times the share of base's spread that is gone; -inf without reward.

    Both are what alignment is for: preferred restorations, and few of them. Without spread the reward alone counts.
    """
    gone = 1 - values["spread"] / base["spread"] if values.get("spread") and base.get("spread") else 0.0
    return values.get("reward_total", -math.inf) + certainty * gone


def below_margin(values: Mapping[str, float], base: Mapping[str, float], margins: Mapping[str, float]) -> list[str]:
    """Return the measures that fell below base's by more than their margin, sorted; one unknown did not."""
    both = values.keys() & base.keys()
    return sorted(name for name, margin in margins.items() if name in both and values[name] < base[name] - margin)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio [N] in dB of images [N, 3, H, W] in [0, 1]."""
    error = (images - references).double().square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-12).log10()
