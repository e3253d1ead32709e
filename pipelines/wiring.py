"""What the pipelines share: places steps, hands sections out, sets retries, timeouts, caching, secrets and volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from components import factory
from components.preflight import OPTIONS
from components.step import PARALLEL
from pipelines import resources
from pipelines.resources import Resources
from prefrestore.stage import STAGES

COMPONENTS = factory.stages()
MERGE = factory.merge()
NOTIFY = factory.notify()
PREFLIGHT = factory.preflight()
WORK_CLAIM = "prefrestore-work"
RELEASES_CLAIM = "prefrestore-releases"
POOLS = "prefrestore-pools"
STORAGE_SECRET = {
    "endpoint": "AWS_ENDPOINT_URL",
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_DEFAULT_REGION",
}
REGISTRY_SECRET = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}


@dataclass(frozen=True)
class Images:
    """Images of a run, as parameters of the pipeline."""

    data: Any
    train: Any


@dataclass(frozen=True)
class Graph:
    """A pipeline in the making: what the preflight step gave, and the images."""

    checked: dsl.PipelineTask
    images: Images

    def stage(self, name: str, *, versioned: bool = False, section: Any = None, **inputs: Any) -> dsl.PipelineTask:
        """Add a stage; ``versioned``: it reads data from outside, so their version belongs to its cache key."""
        arguments = {"section": section or self.checked.outputs[f"section_{name}"], **inputs}
        if name in PARALLEL:
            arguments["launch"] = self.checked.outputs["launch"]
        if versioned:
            arguments["data_version"] = self.checked.outputs["seen_version"]
        task = place(COMPONENTS[name](**arguments), resources.STEPS[name], self.images)
        if STAGES[name].device == "gpu":
            self._on_pool(task, "gpus_parallel" if name in PARALLEL else "gpus")
        return task

    def small(self, component: BaseComponent, **inputs: Any) -> dsl.PipelineTask:
        """Add a step that is no stage."""
        return place(component(**inputs), resources.SMALL, self.images)

    def fetched(self, component: BaseComponent, **inputs: Any) -> dsl.PipelineTask:
        """Add a step that takes artifacts from outside."""
        return self.small(component, data_version=self.checked.outputs["seen_version"], **inputs)

    def _on_pool(self, task: dsl.PipelineTask, gpus: str) -> None:
        kubernetes.add_node_selector_json(task, self.checked.outputs["node_selector"])
        kubernetes.add_toleration_json(task, self.checked.outputs["tolerations"])
        task.set_accelerator_type(self.checked.outputs["accelerator"])
        task.set_accelerator_limit(self.checked.outputs[gpus])
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.SHARED_MEMORY)
        kubernetes.mount_pvc(task, WORK_CLAIM, "/checkpoints")


def place(task: dsl.PipelineTask, asked: Resources, images: Images) -> dsl.PipelineTask:
    """Give a step its image, its resources, its tries and the secrets of the stores."""
    task.set_container_image(images.train if asked.image == "train" else images.data)
    task.set_cpu_request(asked.cpu).set_memory_request(asked.memory).set_memory_limit(asked.memory)
    if asked.retries:
        task.set_retry(asked.retries, resources.BACKOFF, resources.BACKOFF_FACTOR, resources.BACKOFF_MAX)
    kubernetes.set_timeout(task, asked.hours * resources.HOUR)
    kubernetes.use_secret_as_env(task, "prefrestore-s3", STORAGE_SECRET, optional=True)
    kubernetes.use_secret_as_env(task, "prefrestore-mlflow", REGISTRY_SECRET, optional=True)
    return task


def checked(choices: Mapping[str, Any], images: Images) -> Graph:
    """Add the first step; it looks at the outside world, so it is never taken from the cache."""
    task = place(PREFLIGHT(**{name: choices[name] for name in OPTIONS if name in choices}), resources.PREFLIGHT, images)
    task.set_caching_options(False)
    kubernetes.use_config_map_as_volume(task, POOLS, "/etc/prefrestore", optional=True)
    return Graph(task, images)


def notified(pipeline: str, images: Images) -> dsl.PipelineTask:
    """Return the exit task, which tells the webhook of the secret, if there is one."""
    task = place(NOTIFY(pipeline=pipeline), resources.SMALL, images)
    task.set_caching_options(False)
    kubernetes.use_secret_as_env(task, "prefrestore-webhook", {"url": "PREFRESTORE_WEBHOOK"}, optional=True)
    return task


def with_releases(task: dsl.PipelineTask, *, cached: bool) -> dsl.PipelineTask:
    """Mount the release store; what reads or writes the registry must not be taken from the cache."""
    task.set_caching_options(cached)
    kubernetes.mount_pvc(task, RELEASES_CLAIM, "/releases")
    return task


def judged(graph: Graph, made: Mapping[str, Any]) -> None:
    """Add the end of every training pipeline: evaluate against the champion, gate, publish."""
    champion = with_releases(graph.stage("fetch_champion"), cached=True)
    inputs = {name: made[name] for name in ("pairs", "baseline", "base", "policy", "reward")}
    evaluated = graph.stage("evaluate", **inputs, champion=champion.output)
    verdict = graph.stage("gate", metrics=evaluated.outputs["metrics"])
    published = graph.stage(
        "publish",
        **{name: made[name] for name in ("base", "policy", "reward")},
        metrics=evaluated.outputs["metrics"],
        report=evaluated.outputs["report"],
        verdict=verdict.output,
    )
    with_releases(published, cached=False)
