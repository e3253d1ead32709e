"""A training's history in MLflow while it goes on, where MLFLOW_TRACKING_URI names one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from prefrestore.runtime import mlflow_access
from prefrestore.runtime.distributed import is_writer

if TYPE_CHECKING:
    from mlflow import MlflowClient

ADDRESS = "MLFLOW_TRACKING_URI"
RUN_TAG = "prefrestore.run"
TOLD = "step"
"""The metric that says which rows a run has; a resumed training goes on after it."""
REST_SECONDS = 60.0
"""So long a server that did not answer is left alone."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's own settings, unless they are set: it would ask again for minutes."""


class Tracker:
    """One training's run in MLflow; a resumed training goes on with the run it had.

    A server that stops answering holds no training up: a line says so, and the rows are sent when it answers again.
    """

    def __init__(self, stage: str, name: str) -> None:
        """Find or begin the run ``name`` of the experiment ``prefrestore-STAGE``.

        Raises:
            UserError: no MLflow answers at the address.
        """
        for setting, value in PATIENCE.items():
            os.environ.setdefault(setting, value)
        self._stage, self._quiet_until = stage, 0.0
        address = os.environ[ADDRESS]
        self._client = mlflow_access.connect(address)
        try:
            self._run, self._told = _run_of(self._client, f"prefrestore-{stage}", name)
        except mlflow_access.failures() as error:
            raise mlflow_access.unreachable(address, error) from None

    def tell(self, history: Sequence[Mapping[str, float]]) -> None:
        """Send the rows that the run does not have; each names its ``step``."""
        if time.monotonic() >= self._quiet_until:
            self._send(lambda: self._tell(history))

    def end(self, history: Sequence[Mapping[str, float]], tags: Mapping[str, object]) -> None:
        """Send what is left, and close the run with what came of it."""
        self._send(lambda: self._end(history, tags))

    def _tell(self, history: Sequence[Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        for row in history:
            step = int(row[TOLD])
            if step > self._told:
                now = int(time.time() * 1000)
                metrics = [Metric(name, value, now, step) for name, value in row.items()]
                self._client.log_batch(self._run, metrics=metrics)
                self._told = step

    def _end(self, history: Sequence[Mapping[str, float]], tags: Mapping[str, object]) -> None:
        self._tell(history)
        for key, value in tags.items():
            self._client.set_tag(self._run, key, str(value))
        self._client.set_terminated(self._run)

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
        except mlflow_access.failures() as error:
            self._quiet_until = time.monotonic() + REST_SECONDS
            line = f"{self._stage}: MLflow did not take the metrics ({mlflow_access.short(error)}); training goes on"
            print(line, file=sys.stderr, flush=True)


def tracker(stage: str, name: str) -> Tracker | None:
    """Return where to tell of a training; None without MLFLOW_TRACKING_URI, and for all processes but the first.

    Raises:
        UserError: no MLflow answers at the address.
    """
    return Tracker(stage, name) if os.environ.get(ADDRESS) and is_writer() else None


def _run_of(client: MlflowClient, experiment: str, name: str) -> tuple[str, int]:
    """Return the newest run of that name, and the last step it was told; a new one was told of step 0."""
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment)
    found = client.search_runs([place], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
    if not found:
        return client.create_run(place, tags={RUN_TAG: name}, run_name=name).info.run_id, 0
    client.update_run(found[0].info.run_id, status="RUNNING")
    return found[0].info.run_id, int(found[0].data.metrics.get(TOLD, 0))
