"""Waiting for a run without a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_kubeflow.errors import KubeflowError, KubeflowUnavailableError
from airflow_provider_kubeflow.hooks import KubeflowHook
from airflow_provider_kubeflow.runs import Api, Run, changes, states


class KubeflowRunTrigger(BaseTrigger):
    """Looks at a run until it has ended; what its steps do goes to the task's log.

    The event is ``{"number", "ended"}``, or ``{"number", "unavailable"}`` or ``{"number", "refused"}`` with the reason.
    """

    def __init__(self, conn_id: str, number: str, poll: float = 30.0, patience: float = 900.0) -> None:
        """Set what to wait for.

        Args:
            conn_id: connection of the server.
            number: the run.
            poll: seconds between two looks.
            patience: seconds for which the server may be silent.
        """
        super().__init__()
        self.conn_id, self.number, self.poll, self.patience = conn_id, number, poll, patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class and arguments."""
        arguments = {"conn_id": self.conn_id, "number": self.number, "poll": self.poll, "patience": self.patience}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then give one event."""
        try:
            api = await KubeflowHook(self.conn_id).async_api()
            run = await ended(api, self.number, self.poll, self.patience, self.log)
        except KubeflowUnavailableError as error:
            yield TriggerEvent({"number": self.number, "unavailable": str(error)})
        except KubeflowError as error:
            yield TriggerEvent({"number": self.number, "refused": str(error)})
        else:
            yield TriggerEvent({"number": self.number, "ended": run.state})

    async def on_kill(self) -> None:
        """End the run: a person ended the task."""
        api = await KubeflowHook(self.conn_id).async_api()
        await asyncio.to_thread(api.terminate, self.number)
        self.log.info("run %s: terminated, since its task was", self.number)


async def ended(api: Api, number: str, poll: float, patience: float, log: Any) -> Run:
    """Wait for the end of a run and return it; what its steps do goes to a log.

    Args:
        api: where the run is.
        number: the run.
        poll: seconds between two looks.
        patience: seconds for which the server may be silent.
        log: a logger.

    Raises:
        KubeflowUnavailableError: the server was silent for longer.
        KubeflowUserError: it refuses.
    """
    seen: dict[str, str] = {}
    heard = time.monotonic()
    while True:
        try:
            run = await asyncio.to_thread(api.get, number)
        except KubeflowUnavailableError as error:
            log.warning("%s", error)
            if time.monotonic() - heard > patience:
                raise
        else:
            heard = time.monotonic()
            for line in changes(seen, run):
                log.info("%s", line)
            seen = states(run)
            if not run.active:
                return run
        await asyncio.sleep(poll)
