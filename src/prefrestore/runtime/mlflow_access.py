"""How to reach MLflow, and how to show it who we are: MLflow's own environment variables."""

from __future__ import annotations

import base64
import logging
import os
import re
from typing import TYPE_CHECKING

from prefrestore.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_SECONDS = 10.0
DATABASES = ("postgresql", "mysql")


def headers() -> dict[str, str]:
    """Return the headers of a request: MLFLOW_TRACKING_TOKEN, or USERNAME and PASSWORD, or nothing."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    if name and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
    return {}


def certificates() -> bool | str:
    """Return how a server's certificate is checked: MLFLOW_TRACKING_SERVER_CERT_PATH, or against the usual ones."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true":
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def unreachable(uri: str, error: object) -> UserError:
    """Return what to tell the user when MLflow does not answer."""
    return UserError(f"{without_password(uri)}: no MLflow answers ({short(error)}): check the address")


def short(error: object) -> str:
    """Return what an error says, on one line and without passwords."""
    return without_password(" ".join(str(error).split()))[:160]


def without_password(text: str) -> str:
    """Return a text whose addresses name no password."""
    return re.sub(r"(//[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)


def failures() -> tuple[type[Exception], ...]:
    """Return what MLflow's client raises when its store does not answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def connect(uri: str) -> MlflowClient:
    """Return MLflow's own client; an SQLite file that does not exist is made. Takes seconds.

    Raises:
        UserError: nothing answers there.
    """
    from mlflow import MlflowClient
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # what it would print with a traceback is raised too
    try:
        if uri.startswith(DATABASES):
            # MLflow itself asks again and again, for hours.
            asked = create_engine(uri, connect_args={"connect_timeout": int(ANSWER_SECONDS)}, poolclass=NullPool)
            asked.connect().close()
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    except failures() as error:
        raise unreachable(uri, error) from None
    return client
