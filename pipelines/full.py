"""The whole graph, from images to a release."""

from kfp import dsl

from pipelines.wiring import MERGE, Images, checked, judged, notified


@dsl.pipeline(name="prefrestore-full")
def full(  # noqa: PLR0913  one argument per field of the form
    preset: str = "tiny",
    changes: str = "{}",
    data_uri: str = "",
    data_version: str = "",
    votes: str = "",
    shards: str = "1",
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
    """Make data, train everything, judge the result, publish it if it is better.

    Args:
        preset: size of everything: smoke, tiny, portrait or full.
        changes: values to change, by section, as JSON: {"align": {"epochs": 20}}.
        data_uri: images to learn from, a folder on a mounted volume or s3://BUCKET/PREFIX; empty: the preset's own.
        data_version: a name for the data, such as DVC's hash; another name runs everything again.
        votes: folder of people's judgements; empty: the preset's own.
        shards: how many steps make the degraded images side by side.
        gpu_pool: name of the pool of GPU nodes: cpu (none), gpu, or what your cluster's table says.
        gpu_count: GPUs of each step that trains or draws.
        spot: yes: nodes that may be taken away and cost less; training goes on where it was.
        trainer: pod: one node; trainjob: pretrain and align on several nodes, by Kubeflow Trainer.
        nodes: nodes of a TrainJob.
        registry: address of MLflow; empty: the preset's own.
        release_store: folder of the releases on the mounted volume /releases; empty: the preset's own.
        data_image: image of the steps on CPUs.
        train_image: image of the steps that train or draw.
    """
    choices = dict(locals())
    images = Images(data_image, train_image)
    with dsl.ExitHandler(notified("full", images)):
        graph = checked(choices, images)
        faces = graph.stage("ingest", versioned=True).output
        with dsl.ParallelFor(graph.checked.outputs["degrade_parts"], name="shards") as part:
            shard = graph.stage("degrade", section=part, faces=faces)
        pairs = graph.small(MERGE, parts=dsl.Collected(shard.output)).output
        valid = graph.stage("validate", versioned=True, pairs=pairs)
        codec = graph.stage("train_codec", versioned=True, faces=faces).after(valid).output
        baseline = graph.stage("train_baseline", pairs=pairs).after(valid).output
        base = graph.stage("pretrain", pairs=pairs, codec=codec).output
        candidates = graph.stage("sample_candidates", pairs=pairs, base=base).output
        preferences = graph.stage("collect_preferences", versioned=True, candidates=candidates, pairs=pairs).output
        reward = graph.stage("train_reward", pairs=pairs, candidates=candidates, preferences=preferences).output
        policy = graph.stage("align", pairs=pairs, base=base, reward=reward).output
        judged(graph, {"pairs": pairs, "baseline": baseline, "base": base, "policy": policy, "reward": reward})
