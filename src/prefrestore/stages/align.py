"""Stage ``align``: on-policy alignment of the base to the reward (DiffusionNFT); writes an adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from prefrestore import artifacts
from prefrestore.config import AlignConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.models.adapters import add_roles, save_policy
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.rewards.composite import load_reward
from prefrestore.rl.guard import Guard
from prefrestore.rl.live import LiveView
from prefrestore.rl.pool import ConditionCache, draw_pools
from prefrestore.rl.rollout import Restorer, solver
from prefrestore.rl.trainer import Surroundings, align
from prefrestore.rl.types import FacePool
from prefrestore.runtime.checkpoint import Checkpoints
from prefrestore.runtime.crew import accelerator
from prefrestore.runtime.tracking import tracker


def run(config: AlignConfig, *, pairs: Path, base: Path, reward: Path, policy: Path) -> None:
    """Align on training pairs; the guard watches faces held out of them."""
    pools = draw_pools(load_pairs(pairs, "train"), config.pool, config.guard.faces, config.caption_share, config.seed)
    pipeline = PrefRestorePipeline.from_pretrained(base).to(accelerator().device)
    add_roles(pipeline, config.lora, config.seed)
    checkpoints = Checkpoints("align", config, {"pairs": pairs, "base": base, "reward": reward})

    def restorer(pool: FacePool) -> Restorer:
        return Restorer(pipeline, pool, ConditionCache(pipeline, pool), solver(config), config.batch_size)

    with load_reward(reward, config.workers, judge="validation") as scorer:
        guard = Guard(restorer(pools[1]), scorer, config.guard, config.seed)
        live = LiveView(checkpoints.folder, pools[1], tracker("align", checkpoints.folder.name))
        aligned = align(restorer(pools[0]), Surroundings(scorer, guard, live, checkpoints), config)
    save_policy(policy, aligned.tensors, config.lora, artifacts.digest(base))
    artifacts.write_json(policy / "history.json", aligned.history)
    artifacts.write_json(policy / "guard.json", asdict(aligned.watch))
