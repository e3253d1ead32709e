"""The model registry: MLflow behind the few operations that we use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "release.digest"
NEWEST_ALIAS = "challenger"
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Version:
    """One registered version of a model."""

    model: str
    number: int
    digest: str
    source: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The folder of its release.

        Raises:
            UserError: the release lies elsewhere.
        """
        parts = urlparse(self.source)
        if parts.scheme not in ("", "file"):
            raise UserError(f"{self.model} version {self.number}: its release is at {self.source}, which is no folder")
        return Path(unquote(parts.path))


class Registry:
    """The models of one MLflow, embedded (``sqlite:///FILE``) or a server (``http://...``)."""

    def __init__(self, uri: str) -> None:
        """Connect.

        Raises:
            UserError: nothing answers there.
        """
        self.uri = uri
        self._client = _connect(uri)

    def versions(self, model: str) -> list[Version]:
        """Return all versions of a model, oldest first; none if it was never registered."""
        found = self._client.search_model_versions(f"name = {_quoted(model)}")
        aliases = self._aliases(model) if found else {}
        return sorted((_version(row, aliases) for row in found), key=lambda version: version.number)

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

    def register(
        self, model: str, digest: str, source: Path, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> Version:
        """Register a release as the challenger, or return the version that it has already: one digest, one version."""
        known = [version for version in self.versions(model) if version.digest == digest]
        if known:
            return known[0]
        if not self._client.search_registered_models(f"name = {_quoted(model)}"):
            self._client.create_registered_model(model)
        run = self._client.create_run(self._experiment(model), tags={DIGEST_TAG: digest}, run_name=digest[:12])
        for name, value in metrics.items():
            self._client.log_metric(run.info.run_id, name, value)
        self._client.set_terminated(run.info.run_id)
        row = self._client.create_model_version(
            model, source.resolve().as_uri(), run_id=run.info.run_id, tags={DIGEST_TAG: digest, **tags}
        )
        self.set_alias(model, NEWEST_ALIAS, int(row.version))
        return _version(row, {})

    def set_alias(self, model: str, alias: str, number: int | None) -> None:
        """Let an alias name a version, or nothing."""
        if number is not None:
            self._client.set_registered_model_alias(model, alias, str(number))
        elif alias in self._aliases(model):
            self._client.delete_registered_model_alias(model, alias)

    def aliased(self, model: str, alias: str) -> Version | None:
        """Return the version that an alias names."""
        return next((version for version in self.versions(model) if alias in version.aliases), None)

    def _aliases(self, model: str) -> dict[str, int]:
        return {alias: int(number) for alias, number in self._client.get_registered_model(model).aliases.items()}

    def _experiment(self, model: str) -> str:
        known = self._client.get_experiment_by_name(model)
        name: str = known.experiment_id if known else self._client.create_experiment(model)
        return name


def _version(row: Any, aliases: Mapping[str, int]) -> Version:
    number = int(row.version)
    names = tuple(sorted(alias for alias, target in aliases.items() if target == number))
    return Version(row.name, number, row.tags.get(DIGEST_TAG, ""), row.source, names, dict(row.tags))


def _quoted(name: str) -> str:
    if "'" in name:
        raise UserError(f"{name!r} is no name of a model: use letters, digits and dashes")
    return f"'{name}'"


def _connect(uri: str) -> MlflowClient:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if uri.startswith(("http://", "https://")):
            # MLflow itself would try for minutes.
            urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"registry {uri}: no MLflow answers ({detail:.160}): check the address") from None
    return client
