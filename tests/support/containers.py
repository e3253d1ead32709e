"""A Podman of our own, with the images upon a base that debootstrap makes: no image registry is asked."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("podman", "runc", "debootstrap")
BASE = "localhost/prefrestore-base:bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
CONTAINERS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def missing() -> str | None:
    """Return why containers cannot be run here, or None."""
    if os.geteuid():
        return "containers are built by root only"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


@dataclass(frozen=True)
class Engine:
    """Podman with storage and configuration under one folder."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to speak to this Podman, and to no other engine."""
        own = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
        return own | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }

    def configure(self) -> None:
        (self.folder / "containers.conf").write_text(CONTAINERS, encoding="utf-8")
        (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder), encoding="utf-8")

    def call(self, *arguments: str) -> str:
        """Run ``podman ARGUMENTS`` and return what it printed."""
        done = subprocess.run(["podman", *arguments], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"podman {shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def running(self) -> dict[str, str]:
        """Return the number of each container that runs, by its command."""
        rows = json.loads(self.call("ps", "--format", "json") or "[]")
        return {" ".join(row["Command"]): row["Id"] for row in rows}

    def make_base(self, mirror: str = "http://deb.debian.org/debian") -> None:
        """Make the base image."""
        root = self.folder / "root"
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), mirror]
        done = subprocess.run(bootstrap, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        archive = self.folder / "base.tar"
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        shutil.rmtree(root)
        self.call("import", str(archive), BASE)
        archive.unlink()

    def build(self, repository: Path, tag: str) -> None:
        """Build the images as ``make images`` does, with this machine's pip configuration as the secret ``pip``."""
        flags = ["--layers=false", "--network", "host", *self._index()]
        own = {"BASE": BASE, "BUILDER": "podman", "BUILD_FLAGS": " ".join(flags), "PREFIX": "localhost/prefrestore"}
        done = subprocess.run(
            [repository / "docker" / "build.sh", tag],
            env=self.environment | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"

    def _index(self) -> list[str]:
        """Return the flags with which pip finds in the container what it finds here."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
        ).stdout
        values = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
        # As pip does: a variable of the environment goes over a file.
        ranked = sorted(values, key=lambda name: name.startswith(":env:"))
        settings = {name.rpartition(".")[2]: shlex.split(values[name])[0] for name in ranked}
        certificate = settings.pop("cert", None)
        settings.pop("constraint", None)  # the locks say every version
        folders = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
        mounts = {str(Path(folder).parent if folder.endswith("/simple") else folder) for folder in folders}
        flags = [f"--volume={folder}:{folder}:ro" for folder in sorted(mounts) if Path(folder).is_dir()]
        if certificate:
            settings["cert"] = "/run/pip.crt"
            flags.append(f"--volume={certificate}:/run/pip.crt:ro")
        lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
        (self.folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [f"--secret=id=pip,src={self.folder / 'pip.conf'}", *flags]

    def close(self) -> None:
        """Remove everything."""
        subprocess.run(["podman", "rm", "-af"], env=self.environment, capture_output=True, check=False)
        subprocess.run(["podman", "umount", "-af"], env=self.environment, capture_output=True, check=False)
        # Podman's driver binds its folder upon itself.
        subprocess.run(["umount", self.folder / "storage" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(self.folder)
