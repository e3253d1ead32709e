"""New preferences: a new reward, a new alignment of the same base, judged against the champion."""

from kfp import dsl

from components import factory
from pipelines.wiring import Images, checked, judged, notified

FETCH = factory.fetch(("pairs", "candidates", "base", "baseline"), "root")


@dsl.pipeline(name="prefrestore-realign")
def realign(  # noqa: PLR0913  one argument per field of the form
    artifacts_uri: str,
    preset: str = "tiny",
    changes: str = "{}",
    votes: str = "",
    data_version: str = "",
    gpu_pool: str = "cpu",
    gpu_count: str = "0",
    spot: str = "no",
    trainer: str = "pod",
    nodes: str = "1",
    registry: str = "",
    release_store: str = "",
    data_image: str = "prefrestore/data:latest",
    train_image: str = "prefrestore/train:latest",
) -> None:
    """Learn from new judgements without training the restorer again; publish as challenger if it is better.

    Args:
        artifacts_uri: folder or s3://BUCKET/PREFIX of an earlier run, with pairs, candidates, base and baseline.
        preset: the preset of that run: smoke, tiny, portrait or full.
        changes: values to change, by section, as JSON: {"align": {"epochs": 20}}.
        votes: folder of people's judgements; empty: the preset's own.
        data_version: a name for the data, such as DVC's hash; another name runs everything again.
        gpu_pool: name of the pool of GPU nodes: cpu (none), gpu, or what your cluster's table says.
        gpu_count: GPUs of each step that trains or draws.
        spot: yes: nodes that may be taken away and cost less; training goes on where it was.
        trainer: pod: one node; trainjob: align on several nodes, by Kubeflow Trainer.
        nodes: nodes of a TrainJob.
        registry: address of MLflow; empty: the preset's own.
        release_store: folder of the releases on the mounted volume /releases; empty: the preset's own.
        data_image: image of the steps on CPUs.
        train_image: image of the steps that train or draw.
    """
    choices = dict(locals())
    images = Images(data_image, train_image)
    with dsl.ExitHandler(notified("realign", images)):
        graph = checked(choices, images)
        earlier = graph.fetched(FETCH, root=artifacts_uri).outputs
        pairs, candidates, base = earlier["pairs"], earlier["candidates"], earlier["base"]
        preferences = graph.stage("collect_preferences", versioned=True, candidates=candidates, pairs=pairs).output
        reward = graph.stage("train_reward", pairs=pairs, candidates=candidates, preferences=preferences).output
        policy = graph.stage("align", pairs=pairs, base=base, reward=reward).output
        made = {"pairs": pairs, "baseline": earlier["baseline"], "base": base, "policy": policy, "reward": reward}
        judged(graph, made)
