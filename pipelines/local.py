"""Running a compiled package without a cluster, by kfp's own local runner: in containers, or in processes.

The process runner of kfp takes no container components. The refusal is one method, which is replaced while a package
runs, and so is the function that runs a container: private seams, so kfp is pinned and
``tests/contracts/test_pipelines.py`` holds what is relied upon.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from kfp import components, local
from kfp.local import docker_task_handler
from kfp.local.subprocess_task_handler import SubprocessTaskHandler

from prefrestore.errors import UserError

Runner = Literal["local", "docker"]
IMAGES = ("data_image", "train_image")
REFUSAL = "validate_not_container_component"
SOCKETS = ("/var/run/docker.sock",)
START_SECONDS = 20.0


def run(package: Path, arguments: Mapping[str, str], runner: Runner, root: Path, *, cache: bool = True) -> None:
    """Run a package to its end; what its steps write lies under ``root``.

    Raises:
        UserError: a step failed (its lines stand above), or there is nothing to run containers with.
    """
    project = Path.cwd()
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    for path in (root, project):
        if runner == "local" and "python3" in str(path):
            raise UserError(f"{path}: kfp's process runner cannot work in a folder with python3 in its name: move it")
    with _surroundings(runner), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local.init(_runner(runner, project), str(root), enable_caching=cache)
        pipeline = components.load_component_from_text(filled(package.read_text(encoding="utf-8"), arguments))
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            raise UserError(f"{package.name}: {error} The lines above say why.") from None


def filled(text: str, arguments: Mapping[str, str]) -> str:
    """Return a package with its images in place; the local runner does not resolve an image that is a parameter."""
    for name in IMAGES:
        placeholder = f"'{{{{$.inputs.parameters[''pipelinechannel--{name}'']}}}}'"
        image = arguments.get(name, f"prefrestore/{name.removesuffix('_image')}:latest")
        text = text.replace(f"image: {placeholder}", f"image: {image}")
    return text


def _runner(runner: Runner, project: Path) -> Any:
    if runner == "local":
        return local.SubprocessRunner(use_venv=False)
    import docker

    mount = docker.types.Mount(target=str(project), source=str(project), type="bind")
    environment = {"PREFRESTORE_CHECKPOINTS": str(project / ".checkpoints"), "HOME": "/tmp"}
    passed = ("AWS_", "MLFLOW_", "OMP_NUM_THREADS", "PREFRESTORE_WEBHOOK")
    environment |= {name: value for name, value in os.environ.items() if name.startswith(passed)}
    # The steps write into the person's folder, so they have the person's rights and not those of the image's user.
    user = f"{os.getuid()}:{os.getgid()}"
    place = {"mounts": [mount], "working_dir": str(project), "network_mode": "host"}
    return local.DockerRunner(environment=environment, user=user, **place)


@contextmanager
def _surroundings(runner: Runner) -> Iterator[None]:
    if runner == "local":
        with _container_components_allowed():
            yield
        return
    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        with _engine():
            yield
    finally:
        docker_task_handler.run_docker_container = before


def run_container(client: Any, image: str, command: list[str], volumes: Mapping[str, Any], **options: Any) -> int:
    """Run a container to its end, show its lines and return its exit code.

    kfp's own lets the engine remove the container when it ends, and then asks for its lines and its code: Podman
    answers that with an error if the step was quick.
    """
    print(f"in image {image}", flush=True)
    container = client.containers.run(image=image, command=command, volumes=volumes, detach=True, **options)
    try:
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


@contextmanager
def _container_components_allowed() -> Iterator[None]:
    before = getattr(SubprocessTaskHandler, REFUSAL)
    setattr(SubprocessTaskHandler, REFUSAL, lambda self, full_command: None)  # noqa: ARG005  the method's signature
    try:
        yield
    finally:
        setattr(SubprocessTaskHandler, REFUSAL, before)


@contextmanager
def _engine() -> Iterator[None]:
    """Take Docker if it is there, else start Podman's Docker-compatible service for the time of the run."""
    if os.environ.get("DOCKER_HOST") or any(Path(socket).exists() for socket in SOCKETS):
        yield
        return
    if shutil.which("podman") is None:
        raise UserError("run --runner docker: neither Docker nor Podman is here: install one, or use --runner local")
    with tempfile.TemporaryDirectory(prefix="prefrestore-") as folder:
        socket = Path(folder) / "podman.sock"
        command = ["podman", "system", "service", "--time", "0", f"unix://{socket}"]
        with subprocess.Popen(command) as service:
            try:
                _await(socket, service)
                os.environ["DOCKER_HOST"] = f"unix://{socket}"
                yield
            finally:
                os.environ.pop("DOCKER_HOST", None)
                service.terminate()


def _await(socket: Path, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        if service.poll() is not None or time.monotonic() > deadline:
            raise UserError("run --runner docker: podman's service does not start: see the line above")
        time.sleep(0.1)
