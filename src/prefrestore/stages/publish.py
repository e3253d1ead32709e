"""Stage publish: base, policy, reward, metrics, report, verdict -> release. A failed gate is a result, not an error."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefrestore import artifacts
from prefrestore.config import PublishConfig
from prefrestore.registry import card, stores
from prefrestore.registry import release as releases
from prefrestore.registry.audit import Audit
from prefrestore.registry.origin import Origin, read_origin
from prefrestore.registry.promotion import Desk, challenge
from prefrestore.registry.versions import Evidence, Registry
from prefrestore.runtime.provenance import git_commit, pipeline_run


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
    """Put a release into store and registry if the gate passed, keep the evidence, and say in ``release.json``."""
    parts = {"base": base, "policy": policy, "reward": reward, "metrics": metrics, "report": report, "verdict": verdict}
    judged = artifacts.read_json(verdict / "verdict.json")
    result: dict[str, Any] = {"published": False, "model": config.model, "verdict": judged["sentence"]}
    origin = read_origin(parts, config.model, config.licence)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / card.CARD).write_text(card.render(origin, metrics, verdict), encoding="utf-8")
        artifacts.write_json(Path(folder) / "origin.json", asdict(origin))
        parts |= {path.name: path for path in Path(folder).iterdir()}
        evidence = _evidence(parts, origin, passed=judged["passed"])
        registry, store = Registry(config.registry), stores.open_store(config.store)
        location = evidence_location(config.store)
        if judged["passed"]:
            _, source = store.put(parts)
            kept = registry.record(config.model, evidence, location)
            version = registry.register(config.model, evidence, source, kept)
            challenge(Desk(registry, Audit(store, config.model), config.model), version)
            _say(f"published {version.name}, release {evidence.digest:.12}")
            result |= {"published": True, "digest": evidence.digest}
        else:
            registry.record(config.model, evidence, location)
            _say(f"not published: {judged['sentence']}")
    artifacts.write_json(release / "release.json", result)


def policy_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the aligned model's means and interval ends by ``metric``, ``metric_low`` and ``metric_high``."""
    values: dict[str, float] = {}
    for name, estimate in metrics["columns"]["policy"].items():
        ends = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
        values |= {key: estimate[part] for key, part in ends.items() if estimate[part] is not None}
    return values


def evidence_location(store: str) -> str:
    """Return where MLflow keeps files unless its server has a place of its own: beside the releases."""
    return f"{store.rstrip('/')}/evidence" if store.startswith(stores.S3) else f"{Path(store).resolve()}/evidence"


def _evidence(parts: Mapping[str, Path], origin: Origin, *, passed: bool) -> Evidence:
    """Return what is kept of the candidate; the weights themselves are the release's business."""
    tags = {
        "gate.passed": str(passed).lower(),
        "gate.digest": artifacts.digest(parts["verdict"]),
        **{f"parent.{name}": digest for name, digest in origin.parents.items()},
        "data.digest": origin.data["digest"],
        "licence": origin.licence,
        "code.commit": git_commit() or "unknown",
        "kfp.run_id": pipeline_run() or "none",
    }
    kept = {name: path for name, path in parts.items() if name not in ("base", "policy", "reward")}
    metrics = policy_metrics(artifacts.read_json(parts["metrics"] / "metrics.json"))
    return Evidence(releases.digest(releases.describe(parts)), tags, metrics, releases.members(kept))


def _say(line: str) -> None:
    print(f"publish: {line}", file=sys.stderr, flush=True)
