"""One run of a pipeline as one task."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.definitions.context import Context

from airflow_provider_kubeflow.errors import (
    KubeflowError,
    KubeflowRunCanceledError,
    KubeflowRunFailedError,
    KubeflowRunPreemptedError,
    KubeflowUnavailableError,
    KubeflowUserError,
    retry_policy,
)
from airflow_provider_kubeflow.hooks import DEFAULT, KubeflowHook
from airflow_provider_kubeflow.links import KubeflowRunLink
from airflow_provider_kubeflow.runs import Api, Request, Run, start_once
from airflow_provider_kubeflow.triggers import KubeflowRunTrigger, ended

RUN_NAME = "{{ dag.dag_id }}.{{ task.task_id }}.{{ run_id }}"


class KubeflowRunOperator(BaseOperator):
    """Starts a run of a pipeline, once, and waits for it; what it returns is the run's id.

    The run is looked up by its name before it is submitted, so a worker that dies, a try that is repeated and an
    answer that is lost make no second run. A run that failed is submitted again by the next try. Lost networks and
    machines are tried again, as often as ``retries`` says; any other failure is final (``errors.retry_policy``).
    """

    template_fields: Sequence[str] = ("pipeline", "version", "package", "arguments", "run_name", "experiment")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (KubeflowRunLink(),)
    ui_color = "#dce8fb"

    def __init__(  # noqa: PLR0913  one argument per choice of the user
        self,
        *,
        pipeline: str | None = None,
        version: str | None = None,
        package: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        run_name: str = RUN_NAME,
        experiment: str = "airflow",
        service_account: str | None = None,
        conn_id: str = DEFAULT,
        deferrable: bool = True,
        poll: float = 30.0,
        patience: float = 900.0,
        **kwargs: Any,
    ) -> None:
        """Set what to run.

        Args:
            pipeline: name of an uploaded pipeline; with backend local, one that the program knows.
            version: name of its version; None or empty: the newest.
            package: path of a compiled package, instead of ``pipeline``.
            arguments: the pipeline's parameters.
            run_name: names the work; equal names are one run.
            experiment: experiment of the run.
            service_account: account of the run's pods.
            conn_id: connection of type ``kubeflow``.
            deferrable: wait in the triggerer and hold no worker.
            poll: seconds between two looks at the run.
            patience: seconds for which the server may be silent.
            kwargs: of every operator.
        """
        kwargs.setdefault("retry_policy", retry_policy())
        super().__init__(**kwargs)
        self.pipeline, self.version, self.package = pipeline, version, package
        self.arguments = dict(arguments or {})
        self.run_name, self.experiment, self.service_account = run_name, experiment, service_account
        self.conn_id, self.deferrable, self.poll, self.patience = conn_id, deferrable, poll, patience
        self._number: str | None = None

    @cached_property
    def api(self) -> Api:
        """Where the run is made."""
        return KubeflowHook(self.conn_id).api()

    def execute(self, context: Context) -> str:
        """Start the run or find it, and wait."""
        if bool(self.pipeline) == bool(self.package):
            raise KubeflowUserError(f"{self.task_id}: give either pipeline or package")
        request = Request(
            self.run_name,
            self.pipeline or None,
            self.version or None,
            self.package or None,
            self.arguments,
            self.experiment,
            self.service_account,
        )
        run, known = start_once(self.api, request)
        self._number = run.number
        link = self.api.link(run.number)
        context["ti"].xcom_push(key=KubeflowRunLink().xcom_key, value=link)
        self.log.info("run %s %s: %s", run.number, "was there already" if known else "started", link)
        if run.active and self.deferrable:
            trigger = KubeflowRunTrigger(self.conn_id, run.number, self.poll, self.patience)
            self.defer(trigger=trigger, method_name="ended")
        if run.active:
            run = asyncio.run(ended(self.api, run.number, self.poll, self.patience, self.log))
        return self._result(run)

    def ended(self, context: Context, event: dict[str, str]) -> str:  # noqa: ARG002  Airflow's signature
        """Take the trigger's event."""
        if "unavailable" in event:
            raise KubeflowUnavailableError(event["unavailable"])
        if "refused" in event:
            raise KubeflowUserError(event["refused"])
        return self._result(self.api.get(event["number"]))

    def on_kill(self) -> None:
        """End the run: a person ended the task, or it took too long."""
        if self._number is not None:
            self.api.terminate(self._number)
            self.log.info("run %s: terminated, since its task was", self._number)

    def _result(self, run: Run) -> str:
        for step in run.steps:
            self.log.info("%s: %s", step.name, step.state)
        if not run.succeeded:
            raise failure(run)
        return run.number


def failure(run: Run) -> KubeflowError:
    """Return the error that says how a run failed and whether another try makes sense."""
    if run.preempted:
        return KubeflowRunPreemptedError(run.reason)
    if run.state == "CANCELED":
        return KubeflowRunCanceledError(run.reason)
    return KubeflowRunFailedError(run.reason)
