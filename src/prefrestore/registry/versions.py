"""The model registry: MLflow behind the few operations that we use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefrestore.errors import UserError
from prefrestore.registry import backends, stores
from prefrestore.runtime import mlflow_access

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "release.digest"
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"


@dataclass(frozen=True)
class Version:
    """One registered version of a model; ``source`` is the address of its release."""

    model: str
    number: int
    digest: str
    source: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """Model and number, for messages."""
        return f"{self.model} version {self.number}"

    @property
    def store(self) -> stores.Store:
        """The store that holds its release.

        Raises:
            UserError: the version was not registered by us, or its source is no address of a release.
        """
        if not self.digest:
            raise UserError(f"{self.name} has no release: it was not published by this program")
        store, named = stores.split(self.source)
        if named != self.digest:
            raise UserError(f"{self.name}: {self.source} is not release {self.digest:.12}: do not use it")
        return store


@dataclass(frozen=True)
class Evidence:
    """What is kept of a candidate, published or not.

    Attributes:
        digest: of the release that it is or would be.
        tags: where it comes from.
        metrics: figures for MLflow's tables.
        files: file by its path in the run's artifacts.
    """

    digest: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, Path] = field(default_factory=dict)


class Registry:
    """The models of one MLflow: ``sqlite:///FILE``, a server (``http://...``), or any address MLflow knows."""

    def __init__(self, uri: str) -> None:
        """Connect.

        Raises:
            UserError: nothing answers there.
        """
        self.uri = uri
        self._backend = backends.open_backend(uri)

    def versions(self, model: str) -> list[Version]:
        """Return all versions of a model, oldest first; none if it was never registered."""
        rows = self._backend.rows(model)
        aliases = self._backend.aliases(model) if rows else {}
        found = [
            Version(
                model,
                row.number,
                row.tags.get(DIGEST_TAG, ""),
                row.source,
                tuple(sorted(alias for alias, number in aliases.items() if number == row.number)),
                row.tags,
            )
            for row in rows
        ]
        return sorted(found, key=lambda version: version.number)

    def get(self, model: str, number: int) -> Version:
        """Return one version.

        Raises:
            UserError: there is none of that number.
        """
        versions = self.versions(model)
        for version in versions:
            if version.number == number:
                return version
        known = ", ".join(str(version.number) for version in versions) or "none"
        raise UserError(f"{model} has no version {number} in {self.uri}: choose from {known}")

    def aliased(self, model: str, alias: str) -> Version | None:
        """Return the version that an alias names."""
        return next((version for version in self.versions(model) if alias in version.aliases), None)

    def set_alias(self, model: str, alias: str, number: int | None) -> None:
        """Let an alias name a version, or nothing."""
        self._backend.point(model, alias, number)

    def record(self, model: str, evidence: Evidence, location: str) -> str:
        """Keep evidence as an MLflow run of the experiment named like the model, once per digest; return its id.

        Args:
            model: name of the model.
            evidence: what to keep.
            location: where files go if MLflow is no server with a place of its own.
        """
        client = mlflow_access.connect(self.uri)
        experiment = self._experiment(client, model, location)
        known = client.search_runs([experiment], f"tags.`{DIGEST_TAG}` = '{evidence.digest}'", max_results=1)
        if known and known[0].info.status == "FINISHED":
            return str(known[0].info.run_id)
        tags = {DIGEST_TAG: evidence.digest, **evidence.tags}
        run = known[0] if known else client.create_run(experiment, tags=tags, run_name=evidence.digest[:12])
        for name, number in evidence.metrics.items():
            client.log_metric(run.info.run_id, name, number)
        for path, file in evidence.files.items():
            client.log_artifact(run.info.run_id, str(file), str(Path(path).parent) if "/" in path else None)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def register(self, model: str, evidence: Evidence, source: str, run: str | None = None) -> Version:
        """Register a release, or return the version that it has already: one digest, one version.

        Args:
            model: name of the model.
            evidence: whose digest and tags the version carries.
            source: address of the release.
            run: MLflow run with its evidence.
        """
        if (known := self._known(model, evidence.digest)) is not None:
            return known
        client = mlflow_access.connect(self.uri)
        if not client.search_registered_models(f"name = {backends.quoted(model)}"):
            client.create_registered_model(model)
        tags = {DIGEST_TAG: evidence.digest, **evidence.tags}
        row = client.create_model_version(model, source, run_id=run, tags=tags)
        first = self._known(model, evidence.digest)
        if first is not None and first.number < int(row.version):  # another process published the same meanwhile
            client.delete_model_version(model, row.version)
            return first
        return self.get(model, int(row.version))

    def _known(self, model: str, digest: str) -> Version | None:
        return next((version for version in self.versions(model) if version.digest == digest), None)

    def _experiment(self, client: MlflowClient, model: str, location: str) -> str:
        known = client.get_experiment_by_name(model)
        if known:
            return str(known.experiment_id)
        serves_files = self.uri.startswith(("http://", "https://"))
        return str(client.create_experiment(model, None if serves_files else location))
