"""Components, pipelines and compiled packages say what the stage table says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.local.subprocess_task_handler import SubprocessTaskHandler
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from components import factory, pools, trainjob
from pipelines import local, resources, table
from pipelines.compile import GOLDEN, PIPELINES, compile_one
from prefrestore.stage import ARTIFACTS, STAGES

NAMES = list(PIPELINES)


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")))


def _executors(name: str) -> dict[str, Any]:
    rows = _documents(name)[0]["deploymentSpec"]["executors"]
    return {key.removeprefix("exec-"): row["container"] for key, row in rows.items()}


@pytest.mark.parametrize("name", NAMES)
def test_compiled_package_is_golden(name: str, tmp_path: Path) -> None:
    compile_one(name, tmp_path / "new.yaml")
    assert (tmp_path / "new.yaml").read_text() == (GOLDEN / f"{name}.yaml").read_text(), "prefrestore pipeline compile"


def test_table_of_components_is_in_step(repository: Path) -> None:
    text = (repository / "components" / "README.md").read_text(encoding="utf-8")
    assert text == table.render(), "run: python -m pipelines.table > components/README.md"


@pytest.mark.parametrize("name", list(STAGES))
def test_component_has_the_ports_of_its_row(name: str) -> None:
    row = STAGES[name]
    spec = factory.component(factory.of_stage(row)).component_spec
    inputs = {port: kind.type for port, kind in spec.inputs.items() if "@" in str(kind.type)}
    outputs = {port: kind.type for port, kind in spec.outputs.items() if not port.endswith("_page")}
    assert set(inputs) == set(row.inputs)
    assert set(outputs) == set(row.outputs)
    for port, kind in {**inputs, **outputs}.items():
        wanted = {"HTML": "Artifact"}.get(ARTIFACTS[port].kind, ARTIFACTS[port].kind)
        assert kind == f"system.{wanted}@0.0.1"


def test_every_stage_has_resources_and_stands_in_the_full_pipeline() -> None:
    assert set(resources.STEPS) == set(STAGES)
    assert {name.replace("_", "-") for name in STAGES} <= set(_executors("full"))


@pytest.mark.parametrize("name", NAMES)
def test_wiring_follows_the_stage_table(name: str) -> None:
    """Every input port of a stage comes from a step that wrote an artifact of that name."""
    tasks: dict[str, Any] = {}
    for component in _documents(name)[0]["components"].values():
        tasks |= component.get("dag", {}).get("tasks", {})
    for task, spec in tasks.items():
        if task.replace("-", "_") not in STAGES:
            continue
        for port, source in spec["inputs"].get("artifacts", {}).items():
            if "taskOutputArtifact" in source:
                assert source["taskOutputArtifact"]["outputArtifactKey"] == port
            else:
                assert source["componentInputArtifact"].endswith(port)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_launcher_on_a_cluster_replaces_is_used(name: str) -> None:
    """The local runner replaces more: another placeholder, or one in the command, would fail on a cluster only."""
    for step, container in _executors(name).items():
        assert container["command"][:2] == ["python3", "-m"], step
        for word in container["args"]:
            inside = word.replace("{{$}}", "")
            if "{{" in inside:
                assert inside.startswith(
                    ("{{$.inputs.parameters['", "{{$.inputs.artifacts['", "{{$.outputs.artifacts['")
                )
                assert "metadata" not in inside


@pytest.mark.parametrize("name", NAMES)
def test_gpu_steps_get_pool_and_count_as_text_and_cpu_steps_none(name: str) -> None:
    spec, platform = _documents(name)
    config = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for step, container in _executors(name).items():
        gpu = STAGES[step.replace("-", "_")].device == "gpu" if step.replace("-", "_") in STAGES else False
        assert ("accelerator" in container.get("resources", {})) == gpu
        assert ("nodeSelector" in config[f"exec-{step}"]) == gpu
        assert int(config[f"exec-{step}"]["activeDeadlineSeconds"]) > 0
    outputs = spec["components"]["comp-preflight"]["outputDefinitions"]["parameters"]
    assert outputs["gpus"]["parameterType"] == outputs["gpus_parallel"]["parameterType"] == "STRING"


@pytest.mark.parametrize("name", NAMES)
def test_form_fields_are_text_and_documented(name: str) -> None:
    for field, row in _documents(name)[0]["root"]["inputDefinitions"]["parameters"].items():
        assert row["parameterType"] == "STRING", field
        assert len(row["description"]) > 10, field


def test_caching_is_on_but_where_the_outside_world_is_looked_at() -> None:
    uncached = set()
    for component in _documents("full")[0]["components"].values():
        for task, spec in component.get("dag", {}).get("tasks", {}).items():
            if not spec.get("cachingOptions", {}).get("enableCache"):
                uncached.add(task)
    sub_dags = {task for task in uncached if task.startswith(("exit-handler", "for-loop"))}
    assert uncached - sub_dags == {"preflight", "publish"}


# --- the seam in kfp's process runner --------------------------------------------------------------


def test_kfp_refuses_container_components_by_the_one_method_that_is_replaced() -> None:
    arguments: Mapping[str, Any] = {"image": "python", "pipeline_root": "/tmp", "runner": None}
    with pytest.raises(RuntimeError, match="Container Component"):
        SubprocessTaskHandler(full_command=["python3", "-m", "components.step"], **arguments)
    with local._container_components_allowed():
        SubprocessTaskHandler(full_command=["python3", "-m", "components.step"], **arguments)
    with pytest.raises(RuntimeError, match="Container Component"):
        SubprocessTaskHandler(full_command=["python3", "-m", "components.step"], **arguments)


def test_kfp_is_the_version_that_the_seam_was_written_for(repository: Path) -> None:
    import kfp

    assert kfp.__version__ == "2.17.0"
    assert "kfp==2.17.0" in (repository / "requirements" / "dev.lock").read_text(encoding="utf-8").split()


def test_images_take_the_place_of_their_parameters() -> None:
    text = local.filled((GOLDEN / "realign.yaml").read_text(encoding="utf-8"), {"train_image": "mine:1"})
    images = {line.split("image:")[1].strip() for line in text.splitlines() if line.strip().startswith("image: ")}
    assert images == {"mine:1", "prefrestore/data:latest"}


# --- containers know no kfp, TrainJob ---------------------------------------------------------------


@pytest.mark.parametrize("module", ["step", "preflight", "fetch", "merge", "notify"])
def test_what_runs_in_a_container_loads_no_kfp(module: str) -> None:
    probe = f"import sys, components.{module}; print(*{{'kfp', 'torch', 'pipelines', 'docker'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


HIDE = """
import importlib, importlib.metadata as metadata, re, sys
known = {row.partition("==")[0] for row in open("requirements/data.lock").read().split()} | {"prefrestore"}
owners = {
    top: {re.sub("[-_.]+", "-", name.lower()) for name in names}
    for top, names in metadata.packages_distributions().items()
}

class Hidden:
    def find_spec(self, name, *rest):
        if "." not in name and not owners.get(name, known) & known:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
importlib.import_module(f"prefrestore.stages.{sys.argv[1]}")
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("name", [name for name, asked in resources.STEPS.items() if asked.image == "data"])
def test_stages_of_the_data_image_need_only_its_packages(name: str, repository: Path) -> None:
    """The stage can be imported where nothing is installed but what stands in data.lock; torch does not."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE, name], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "False"
    data, run = (
        set((repository / "requirements" / f"{lock}.lock").read_text(encoding="utf-8").split())
        for lock in ("data", "run")
    )
    assert data <= run


def test_trainjob_is_one_that_the_sdk_knows() -> None:
    request = pools.choose("gpu", "4", "yes")
    job = {
        "nodes": 2, "image": "prefrestore/train:1", "accelerator": request.accelerator, "gpus": request.count,
        "node_selector": request.node_selector, "tolerations": request.tolerations,
    }  # fmt: skip
    rendered = trainjob.render("align-0123456789", ["prefrestore", "stage", "align"], job)
    model = TrainerV1alpha1TrainJob.from_dict(rendered)
    assert model is not None
    back = json.loads(json.dumps(model.to_dict()))
    assert back["spec"] == rendered["spec"]
    assert model.spec.trainer.num_nodes == 2
