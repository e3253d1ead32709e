"""The connection: from what Airflow keeps to a server, or to this machine."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_provider_kubeflow import CONNECTION
from airflow_provider_kubeflow.errors import KubeflowError, KubeflowUserError
from airflow_provider_kubeflow.local import Machine
from airflow_provider_kubeflow.runs import Api
from airflow_provider_kubeflow.server import Server

DEFAULT = "kubeflow_default"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"
"""Variable by which Kubeflow tells pods where the service account's token is."""


class KubeflowHook(BaseHook):
    """Gives what a connection of type ``kubeflow`` describes.

    Host is the server's address; the password a bearer token. Extra: ``backend`` (``kubeflow`` or ``local``),
    ``namespace``, ``token_path`` (service account), ``ui_url``, ``ca_file``; for ``local`` ``program`` and ``folder``.
    """

    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str] = DEFAULT
    conn_type: ClassVar[str] = CONNECTION
    hook_name: ClassVar[str] = "Kubeflow Pipelines"

    def __init__(self, conn_id: str = DEFAULT) -> None:
        """Remember the connection's name; nothing is read yet."""
        super().__init__()
        self.conn_id = conn_id

    def api(self) -> Api:
        """Return where runs are made.

        Raises:
            KubeflowUserError: there is no such connection, or something is missing in it.
        """
        try:
            return api_of(self.get_connection(self.conn_id))
        except AirflowNotFoundException:
            raise self._missing() from None

    async def async_api(self) -> Api:
        """Return the same as :meth:`api`, inside a triggerer."""
        try:
            return api_of(await self.aget_connection(self.conn_id))
        except AirflowNotFoundException:
            raise self._missing() from None

    def get_conn(self) -> Api:
        """Return the same as :meth:`api`, by Airflow's name for it."""
        return self.api()

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the connection works; the button in Airflow's form."""
        try:
            self.api().check()
        except KubeflowError as error:
            return False, str(error)
        return True, "Kubeflow Pipelines answers"

    def _missing(self) -> KubeflowUserError:
        return KubeflowUserError(f"connection {self.conn_id!r} does not exist: add one of type {CONNECTION}")


def api_of(connection: Connection) -> Api:
    """Return the server or machine that a connection describes.

    Raises:
        KubeflowUserError: something is missing or unknown in it.
    """
    name = connection.conn_id
    try:
        extra: dict[str, Any] = {key: value for key, value in connection.extra_dejson.items() if value}
    except ValueError:
        raise KubeflowUserError(f"connection {name!r}: extra is no JSON: mend it") from None
    backend = extra.get("backend", "kubeflow")
    if backend == "local":
        if missing := [key for key in ("program", "folder") if key not in extra]:
            raise KubeflowUserError(f"connection {name!r}: backend local needs {missing[0]} in extra")
        return Machine(str(extra["program"]), str(extra["folder"]))
    if backend != "kubeflow":
        raise KubeflowUserError(f"connection {name!r}: backend {backend!r} is neither kubeflow nor local")
    if not connection.host:
        raise KubeflowUserError(f"connection {name!r}: has no host: give the server's address")
    token_path = extra.get("token_path") or (None if connection.password else os.environ.get(TOKEN_PATH))
    optional = {key: extra.get(key) for key in ("namespace", "ui_url", "ca_file")}
    return Server(_address(connection), token=connection.password or None, token_path=token_path, **optional)


def _address(connection: Connection) -> str:
    host = str(connection.host)
    port = f":{connection.port}" if connection.port else ""
    return f"{host}{port}" if "://" in host else f"{connection.schema or 'http'}://{host}{port}"
