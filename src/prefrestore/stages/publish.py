"""Stage publish: base, policy, reward, metrics, report, verdict -> release. A failed gate is a result, not an error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefrestore import artifacts
from prefrestore.config import PublishConfig
from prefrestore.registry import release as releases
from prefrestore.registry.versions import Registry
from prefrestore.runtime.provenance import git_commit


def run(  # noqa: PLR0913  one path per port of the stage
    config: PublishConfig,
    *,
    base: Path,
    policy: Path,
    reward: Path,
    metrics: Path,
    report: Path,
    verdict: Path,
    release: Path,
) -> None:
    """Put a release into store and registry if the gate passed; write ``release.json`` that says what was done."""
    judged = artifacts.read_json(verdict / "verdict.json")
    result: dict[str, Any] = {"published": False, "model": config.model, "verdict": judged["sentence"]}
    if judged["passed"]:
        parts = {"base": base, "policy": policy, "reward": reward}
        parts |= {"metrics": metrics, "report": report, "verdict": verdict}
        digest, folder = releases.put(Path(config.store), parts)
        version = Registry(config.registry).register(
            config.model, digest, folder, _tags(parts), policy_metrics(artifacts.read_json(metrics / "metrics.json"))
        )
        _say(f"published {config.model} version {version.number}, release {digest:.12}")
        result |= {"published": True, "digest": digest}
    else:
        _say(f"not published: {judged['sentence']}")
    artifacts.write_json(release / "release.json", result)


def policy_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the aligned model's means and interval ends by ``metric``, ``metric_low`` and ``metric_high``."""
    values: dict[str, float] = {}
    for name, estimate in metrics["columns"]["policy"].items():
        ends = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
        values |= {key: estimate[part] for key, part in ends.items() if estimate[part] is not None}
    return values


def _tags(parts: Mapping[str, Path]) -> dict[str, str]:
    """Return where the release comes from: parents, data, code and gate."""
    trained_on = artifacts.read_manifest(parts["base"]).inputs
    return {
        "gate.passed": "true",
        "gate.digest": artifacts.digest(parts["verdict"]),
        "base.digest": artifacts.digest(parts["base"]),
        "policy.digest": artifacts.digest(parts["policy"]),
        "reward.digest": artifacts.digest(parts["reward"]),
        "data.digest": trained_on["pairs"],
        "code.commit": git_commit() or "unknown",
    }


def _say(line: str) -> None:
    print(f"publish: {line}", file=sys.stderr, flush=True)
