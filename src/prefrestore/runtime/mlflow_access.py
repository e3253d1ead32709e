"""How to show an MLflow server who we are: MLflow's own environment variables."""

from __future__ import annotations

import base64
import os


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
