"""Kubeflow Pipelines over the network: submit a run, wait for it, schedule one."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrestore.errors import UserError

TOKEN = "KFP_TOKEN"
CRON_FIELDS = 6
ENDED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})
"""States that a run does not leave by itself. kfp's own waiting forgets the last one, and never ends for it."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class Server:
    """Where Kubeflow Pipelines answers, as whom we speak, and as whom the run's pods work."""

    host: str
    namespace: str
    experiment: str
    account: str | None = None
    """Service account of the pods; None: the installation's own."""

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Give kfp's client; what goes wrong with the server is one line, and the links that it prints are no output.

        Raises:
            UserError: nobody answers, or the server refuses.
        """
        import kfp
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            with redirect_stdout(sys.stderr):
                self._greet()
                yield kfp.Client(host=self.host, namespace=self.namespace, existing_token=os.environ.get(TOKEN))
        except ApiException as error:
            raise UserError(f"{self.host}: Kubeflow answered {error.status} {_refusal(error)}") from None
        except (HTTPError, OSError, RuntimeError) as error:
            detail = " ".join(str(error).split())
            raise UserError(f"{self.host}: Kubeflow Pipelines does not answer ({detail:.160})") from None

    def _greet(self) -> None:
        """Ask once whether we may speak: kfp's client asks five times, with a traceback each, if we may not."""
        import kfp_server_api

        token = os.environ.get(TOKEN)
        header = {"header_name": "Authorization", "header_value": f"Bearer {token}"} if token else {}
        speaker = kfp_server_api.ApiClient(kfp_server_api.Configuration(host=self.host), **header)
        kfp_server_api.HealthzServiceApi(speaker).healthz_service_get_healthz()


def _refusal(error: Any) -> str:
    """Return the server's own words; without a right to speak, where the token is taken from."""
    if error.status in (401, 403):
        return f"{error.reason}: check ${TOKEN} and the namespace"
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def submit(server: Server, package: Path, arguments: Mapping[str, str], name: str, *, cache: bool) -> str:
    """Start a run and return its number."""
    with server.client() as client:
        run = client.create_run_from_pipeline_package(
            str(package),
            arguments=dict(arguments),
            run_name=name,
            experiment_name=server.experiment,
            enable_caching=None if cache else False,
            service_account=server.account,
        )
        return str(run.run_id)


def wait(server: Server, number: str, timeout: float) -> str:
    """Wait for a run, telling on standard error what state it is in, and return the last one.

    Args:
        server: where the run is.
        number: the run's.
        timeout: seconds.

    Raises:
        UserError: it has not ended by then; it goes on.
    """
    started, shown = time.monotonic(), ""
    with server.client() as client:
        while (state := str(client.get_run(number).state)) not in ENDED:
            if state != shown:
                print(f"run {number}: {state}", file=sys.stderr, flush=True)
            shown, waited = state, time.monotonic() - started
            if waited > timeout:
                raise UserError(f"run {number}: has not ended after {timeout:.0f} s: it goes on; look at the UI")
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE + waited / 20, max(timeout - waited, 0.1)))
    return state


def schedule(server: Server, package: Path, arguments: Mapping[str, str], name: str, cron: str) -> str:
    """Let a package run by the clock under ``name``, in place of what ran under that name before.

    Exactly this package: it is uploaded as a version named by its content, unless that is there already.

    Returns:
        The recurring run's number.

    Raises:
        UserError: ``cron`` has not six fields (seconds first), or the server refuses.
    """
    if len(cron.split()) != CRON_FIELDS:
        raise UserError(
            f"--cron: {cron!r} has {len(cron.split())} fields: Kubeflow wants six, seconds first: '0 0 3 * * *'"
        )
    with server.client() as client:
        pipeline, version = _uploaded(client, package, name)
        # As kfp has it: the default stands for an installation of a single user, which knows no namespaces.
        namespace = None if server.namespace == "kubeflow" else server.namespace
        experiment = client.create_experiment(server.experiment, namespace=namespace).experiment_id
        before = client.list_recurring_runs(experiment_id=experiment, filter=_named(name), page_size=100)
        made = client.create_recurring_run(
            experiment,
            job_name=name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            pipeline_id=pipeline,
            version_id=version,
            params=dict(arguments),
            service_account=server.account,
        )
        for old in before.recurring_runs or ():
            client.delete_recurring_run(old.recurring_run_id)
        return str(made.recurring_run_id)


def _uploaded(client: Any, package: Path, name: str) -> tuple[str, str]:
    """Return the numbers of the pipeline ``name`` and of its version that holds this package."""
    pipeline = client.get_pipeline_id(name)
    if pipeline is None:
        pipeline = client.upload_pipeline(str(package), pipeline_name=name).pipeline_id
    content = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    known = client.list_pipeline_versions(pipeline, filter=_named(content)).pipeline_versions
    version = known[0] if known else client.upload_pipeline_version(str(package), content, pipeline_id=pipeline)
    return pipeline, version.pipeline_version_id


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
