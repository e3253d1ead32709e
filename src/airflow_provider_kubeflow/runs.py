"""What a run is, wherever it runs: request, state, and the rule that makes submission happen once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_provider_kubeflow.errors import KubeflowUnavailableError

ACTIVE = frozenset({"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED"})
GOOD = frozenset({"SUCCEEDED", "SKIPPED"})
LOST_MACHINE = re.compile(
    r"preempt|evict|node (?:was )?(?:shut|drain|lost|not ready)|imminent node shutdown"
    r"|pod (?:was )?(?:deleted|terminated)|low on resource|spot (?:instance|vm)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Step:
    """One task of a run.

    Attributes:
        name: as in the pipeline.
        state: Kubeflow's name of it.
        error: why it failed, one line; empty if it did not.
    """

    name: str
    state: str
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run as the server sees it now.

    Attributes:
        number: the server's id.
        name: what we called it.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED or PAUSED.
        error: why it failed, one line; empty if it did not.
        steps: its tasks.
    """

    number: str
    name: str
    state: str
    error: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.state in GOOD

    @property
    def preempted(self) -> bool:
        """Whether it failed because its machines were taken away, by the words of its errors."""
        texts = [self.error, *(step.error for step in self.steps)]
        return self.state == "FAILED" and any(LOST_MACHINE.search(text) for text in texts)

    @property
    def reason(self) -> str:
        """Say in one line how it ended."""
        failed = [f"{step.name}: {step.error or step.state}" for step in self.steps if step.state == "FAILED"]
        why = self.error or "; ".join(failed[:3])
        return f"run {self.name} ({self.number}): {self.state}{f': {why}' if why else ''}"


@dataclass(frozen=True)
class Request:
    """A run to be started.

    Attributes:
        name: the run is looked up by it before it is submitted, so it must name the work and not the try.
        pipeline: name of an uploaded pipeline; with backend local also of one that the program knows.
        version: name of its version; None: the newest.
        package: path of a compiled package, instead of ``pipeline``.
        arguments: parameters of the pipeline.
        experiment: name of the experiment; it is made if need be.
        service_account: account of the run's pods.
    """

    name: str
    pipeline: str | None = None
    version: str | None = None
    package: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    experiment: str = "airflow"
    service_account: str | None = None


class Api(Protocol):
    """Where runs are made."""

    def find(self, name: str) -> Run | None:
        """Return the run of that name that counts: one that has not ended or that ended well."""

    def create(self, request: Request) -> Run:
        """Start a run."""

    def get(self, number: str) -> Run:
        """Return a run as it is now."""

    def terminate(self, number: str) -> None:
        """End a run; one that has ended already is left alone."""

    def link(self, number: str) -> str:
        """Return where people look at the run."""

    def check(self) -> None:
        """Look whether runs can be made here; raises a :class:`errors.KubeflowError` if not."""


def that_counts(runs: list[Run]) -> Run | None:
    """Return an active run, else one that ended well, else None: a failed run may be tried again."""
    return next((run for run in runs if run.active), None) or next((run for run in runs if run.succeeded), None)


def start_once(
    api: Api, request: Request, *, tries: int = 6, pause: float = 2.0, sleep: Callable[[float], None] = time.sleep
) -> tuple[Run, bool]:
    """Return the run of this request and whether it was there before; a run is submitted only if none is found.

    A submission whose answer was lost is looked up before it is repeated, so cut connections make no second run.

    Args:
        api: where.
        request: what.
        tries: how often a server that does not answer is asked.
        pause: seconds after the first try; doubled after each.
        sleep: how to wait.

    Raises:
        KubeflowUnavailableError: it never answered.
        KubeflowUserError: it refuses.
    """
    for turn in range(1, tries + 1):
        try:
            found = api.find(request.name)
            return (found, True) if found else (api.create(request), False)
        except KubeflowUnavailableError:
            if turn == tries:
                raise
            sleep(pause * 2 ** (turn - 1))
    raise AssertionError("the last turn returns or raises")


def changes(before: Mapping[str, str], run: Run) -> list[str]:
    """Return a line per step whose state is another than ``before``, in the run's order."""
    return [
        f"{step.name}: {step.state}{f' ({step.error})' if step.error else ''}"
        for step in run.steps
        if before.get(step.name) != step.state
    ]


def states(run: Run) -> dict[str, str]:
    """Return the state of every step."""
    return {step.name: step.state for step in run.steps}
