"""A registered model on a data set."""

from kfp import dsl

from components import factory
from pipelines.wiring import Images, checked, notified, with_releases

RELEASE = factory.fetch(("base", "policy", "reward"), "champion")
YARDSTICK = factory.fetch(("baseline",), "root")


@dsl.pipeline(name="prefrestore-evaluate")
def evaluate(  # noqa: PLR0913  one argument per field of the form
    model_version: str,
    model_digest: str,
    artifacts_uri: str,
    preset: str = "tiny",
    changes: str = "{}",
    data_uri: str = "",
    data_version: str = "",
    gpu_pool: str = "cpu",
    gpu_count: str = "0",
    spot: str = "no",
    registry: str = "",
    data_image: str = "prefrestore/data:latest",
    train_image: str = "prefrestore/train:latest",
) -> None:
    """Measure a registered model on a data set; nothing is trained and nothing is published.

    Args:
        model_version: number of the registered version (prefrestore model list).
        model_digest: digest of its release (prefrestore model show).
        artifacts_uri: folder or s3://BUCKET/PREFIX of an earlier run, with the yardstick baseline.
        preset: the preset of the model: smoke, tiny, portrait or full.
        changes: values to change, by section, as JSON: {"evaluate": {"samples": 8}}.
        data_uri: images to measure on, a folder on a mounted volume or s3://BUCKET/PREFIX; empty: the preset's own.
        data_version: a name for the data, such as DVC's hash; another name runs everything again.
        gpu_pool: name of the pool of GPU nodes: cpu (none), gpu, or what your cluster's table says.
        gpu_count: GPUs of the step that draws.
        spot: yes: nodes that may be taken away and cost less.
        registry: address of MLflow; empty: the preset's own.
        data_image: image of the steps on CPUs.
        train_image: image of the steps that draw.
    """
    choices = dict(locals())
    images = Images(data_image, train_image)
    with dsl.ExitHandler(notified("evaluate", images)):
        graph = checked(choices, images)
        faces = graph.stage("ingest", versioned=True).output
        pairs = graph.stage("degrade", faces=faces).output
        champion = with_releases(graph.stage("fetch_champion"), cached=True).output
        model = graph.fetched(RELEASE, champion=champion).outputs
        baseline = graph.fetched(YARDSTICK, root=artifacts_uri).output
        parts = {name: model[name] for name in ("base", "policy", "reward")}
        measured = graph.stage("evaluate", pairs=pairs, baseline=baseline, champion=champion, **parts)
        graph.stage("gate", metrics=measured.outputs["metrics"])
