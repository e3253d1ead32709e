"""Kubeflow Pipelines over the network: submit a run, wait for it, schedule one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrestore.errors import UserError

TOKEN = "KFP_TOKEN"
CRON_FIELDS = 6


@dataclass(frozen=True)
class Server:
    """Where Kubeflow Pipelines answers, and as whom we speak."""

    host: str
    namespace: str
    experiment: str

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Give kfp's client; what goes wrong with the server is one line.

        Raises:
            UserError: nobody answers, or the server refuses.
        """
        import kfp
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield kfp.Client(host=self.host, namespace=self.namespace, existing_token=os.environ.get(TOKEN))
        except ApiException as error:
            raise UserError(f"{self.host}: Kubeflow answered {error.status} {error.reason}: check ${TOKEN}") from None
        except (HTTPError, OSError, RuntimeError) as error:
            detail = " ".join(str(error).split())
            raise UserError(f"{self.host}: Kubeflow Pipelines does not answer ({detail:.160})") from None


def submit(server: Server, package: Path, arguments: Mapping[str, str], name: str, *, cache: bool) -> str:
    """Start a run and return its number."""
    with server.client() as client:
        run = client.create_run_from_pipeline_package(
            str(package),
            arguments=dict(arguments),
            run_name=name,
            experiment_name=server.experiment,
            enable_caching=None if cache else False,
        )
        return str(run.run_id)


def wait(server: Server, number: str, timeout: float, pause: float = 10.0) -> str:
    """Wait for a run and return its state."""
    with server.client() as client:
        try:
            return str(client.wait_for_run_completion(number, timeout, pause).state)
        except TimeoutError:
            raise UserError(f"run {number}: has not ended after {timeout:.0f} s: it goes on; look at the UI") from None


def schedule(server: Server, package: Path, arguments: Mapping[str, str], name: str, cron: str) -> str:
    """Upload a package under ``name``, let it run by the clock, and return the recurring run's number.

    Raises:
        UserError: ``cron`` has not six fields (seconds first), or the server refuses.
    """
    if len(cron.split()) != CRON_FIELDS:
        raise UserError(
            f"--cron: {cron!r} has {len(cron.split())} fields: Kubeflow wants six, seconds first: '0 0 3 * * *'"
        )
    with server.client() as client:
        known = client.get_pipeline_id(name)
        if known is None:
            known = client.upload_pipeline(str(package), pipeline_name=name).pipeline_id
        else:
            count = len(client.list_pipeline_versions(known).pipeline_versions or [])
            client.upload_pipeline_version(str(package), f"{name} {count + 1}", pipeline_id=known)
        experiment = client.create_experiment(server.experiment, namespace=server.namespace)
        made = client.create_recurring_run(
            experiment.experiment_id,
            job_name=name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            pipeline_id=known,
            params=dict(arguments),
        )
        return str(made.recurring_run_id)
