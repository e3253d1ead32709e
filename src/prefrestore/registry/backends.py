"""What decisions need of MLflow: versions and aliases, without importing MLflow where that can be had.

Importing MLflow and opening its store takes seconds, a decision should not. A server is asked by its REST interface, an
SQLite file by its tables; any other address goes through MLflow's own client. All three say the same (tested).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefrestore.errors import UserError
from prefrestore.runtime import mlflow_access

SQLITE = "sqlite:///"
LOCK_SECONDS = 30.0
PAGE = 1000
DELETED = "Deleted_Internal"


@dataclass(frozen=True)
class Row:
    """A version as MLflow has it."""

    number: int
    source: str
    tags: Mapping[str, str]


class Backend(Protocol):
    """Versions and aliases of models."""

    def rows(self, model: str) -> list[Row]:
        """Return the versions of a model; none if it was never registered."""

    def aliases(self, model: str) -> dict[str, int]:
        """Return which version each alias names."""

    def point(self, model: str, alias: str, number: int | None) -> None:
        """Let an alias name a version, or nothing."""


def open_backend(uri: str) -> Backend:
    """Return the backend of an MLflow address.

    Raises:
        UserError: nothing answers there, or it is no MLflow.
    """
    if uri.startswith(("http://", "https://")):
        return Server(uri.rstrip("/"))
    if uri.startswith(SQLITE):
        return Database(uri)
    return Client(uri)


def quoted(name: str) -> str:
    """Return a model's name as MLflow's filters take it.

    Raises:
        UserError: it holds a quote.
    """
    if "'" in name:
        raise UserError(f"{name!r} is no name of a model: use letters, digits and dashes")
    return f"'{name}'"


class Server:
    """An MLflow server, by its REST interface (version 2.0 of it)."""

    def __init__(self, url: str) -> None:
        """Ask whether it is there."""
        import requests

        self._url = url
        self._session = requests.Session()
        self._session.headers.update(mlflow_access.headers())
        self._session.verify = mlflow_access.certificates()
        self._answer("GET", "registered-models/search", params={"max_results": 1})

    def rows(self, model: str) -> list[Row]:
        """See :class:`Backend`."""
        found: list[Row] = []
        token = ""
        while True:
            asked = {"filter": f"name = {quoted(model)}", "max_results": PAGE, "page_token": token}
            answer = self._answer("GET", "model-versions/search", params=asked) or {}
            for row in answer.get("model_versions", ()):
                tags = {tag["key"]: tag.get("value", "") for tag in row.get("tags", ())}
                found.append(Row(int(row["version"]), row.get("source", ""), tags))
            token = answer.get("next_page_token", "")
            if not token:
                return found

    def aliases(self, model: str) -> dict[str, int]:
        """See :class:`Backend`."""
        answer = self._answer("GET", "registered-models/get", params={"name": model}) or {}
        rows = answer.get("registered_model", {}).get("aliases", ())
        return {row["alias"]: int(row["version"]) for row in rows}

    def point(self, model: str, alias: str, number: int | None) -> None:
        """See :class:`Backend`."""
        if number is None:
            self._answer("DELETE", "registered-models/alias", json={"name": model, "alias": alias})
            return
        values = {"name": model, "alias": alias, "version": str(number)}
        self._answer("POST", "registered-models/alias", json=values)

    def _answer(self, method: str, path: str, **content: Any) -> dict[str, Any] | None:
        """Return the answer, None for what does not exist."""
        from requests import RequestException

        try:
            reply = self._session.request(
                method, f"{self._url}/api/2.0/mlflow/{path}", timeout=mlflow_access.ANSWER_SECONDS, **content
            )
            answer: dict[str, Any] = reply.json()
        except (RequestException, ValueError) as error:
            raise mlflow_access.unreachable(self._url, error) from None
        if reply.ok:
            return answer
        if answer.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            return None
        if reply.status_code in (401, 403):
            raise UserError(f"registry {self._url}: refuses these credentials: set MLFLOW_TRACKING_TOKEN or USERNAME")
        raise UserError(f"registry {self._url}: {answer.get('message', reply.reason):.200}")


class Database:
    """An SQLite file of MLflow; a file that does not exist yet is a registry without models."""

    def __init__(self, uri: str) -> None:
        """Look whether it can be opened and holds MLflow's tables."""
        self._uri = uri
        self._path = Path(uri.removeprefix(SQLITE).partition("?")[0])
        if not self._path.parent.is_dir():
            raise mlflow_access.unreachable(uri, f"{self._path.parent} is no folder")
        if self._path.exists():
            self._ask("select 1")

    def rows(self, model: str) -> list[Row]:
        """See :class:`Backend`."""
        tags: dict[int, dict[str, str]] = {}
        for number, key, value in self._ask("select version, key, value from model_version_tags where name = ?", model):
            tags.setdefault(number, {})[key] = value
        found = self._ask(
            "select version, source from model_versions where name = ? and current_stage <> ?", model, DELETED
        )
        return [Row(number, source, tags.get(number, {})) for number, source in found]

    def aliases(self, model: str) -> dict[str, int]:
        """See :class:`Backend`."""
        return dict(self._ask("select alias, version from registered_model_aliases where name = ?", model))

    def point(self, model: str, alias: str, number: int | None) -> None:
        """See :class:`Backend`."""
        if number is None:
            self._ask("delete from registered_model_aliases where name = ? and alias = ?", model, alias)
            return
        self._ask(
            "insert into registered_model_aliases (name, alias, version) values (?, ?, ?) "
            "on conflict (workspace, name, alias) do update set version = excluded.version",
            *(model, alias, number),
        )

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        """Run one statement as a transaction of its own; without file or tables there is nothing."""
        if not self._path.exists():
            return []
        try:
            with closing(sqlite3.connect(self._path, timeout=LOCK_SECONDS)) as database, database:
                if not database.execute("select 1 from sqlite_master where name = 'model_versions'").fetchall():
                    return []
                return database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise mlflow_access.unreachable(self._uri, error) from None


class Client:
    """Any address that MLflow's own client knows."""

    def __init__(self, uri: str) -> None:
        """Connect."""
        self._client = mlflow_access.connect(uri)

    def rows(self, model: str) -> list[Row]:
        """See :class:`Backend`."""
        found = self._client.search_model_versions(f"name = {quoted(model)}")
        return [Row(int(row.version), row.source, dict(row.tags)) for row in found]

    def aliases(self, model: str) -> dict[str, int]:
        """See :class:`Backend`."""
        known = self._client.search_registered_models(f"name = {quoted(model)}")
        return {alias: int(number) for row in known for alias, number in row.aliases.items()}

    def point(self, model: str, alias: str, number: int | None) -> None:
        """See :class:`Backend`."""
        if number is not None:
            self._client.set_registered_model_alias(model, alias, str(number))
        elif alias in self.aliases(model):
            self._client.delete_registered_model_alias(model, alias)
