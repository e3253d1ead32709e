"""``python3 -m components.notify``: tell a webhook how a run ended; without a webhook only the log says it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.request import Request, urlopen

from components.contract import Exchange
from prefrestore import cli
from prefrestore.errors import UserError

WEBHOOK = "PREFRESTORE_WEBHOOK"
ANSWER_SECONDS = 10.0


def main(arguments: Sequence[str]) -> None:
    """Post one line of text, in the form that Slack, Teams and Mattermost read."""
    parser = argparse.ArgumentParser(prog="components.notify", allow_abbrev=False)
    parser.add_argument("--executor-input", required=True)
    parser.add_argument("--pipeline", required=True)
    options = parser.parse_args(arguments)
    text = sentence(options.pipeline, Exchange.parse(options.executor_input))
    print(text, flush=True)
    if address := os.environ.get(WEBHOOK):
        _post(address, text)


def sentence(pipeline: str, exchange: Exchange) -> str:
    """Return how the run ended, in one line."""
    status: dict[str, Any] = json.loads(exchange.parameter("status") or "{}")
    state = status.get("state", "UNKNOWN")
    error = (status.get("error") or {}).get("message", "")
    name = status.get("pipelineJobResourceName") or status.get("pipeline_job_resource_name") or ""
    return f"prefrestore {pipeline} {name}: {state}{f' ({error})' if error else ''}"


def _post(address: str, text: str) -> None:
    if not address.startswith(("http://", "https://")):
        raise UserError(f"{WEBHOOK}: is no http address: mend the secret prefrestore-webhook")
    body = json.dumps({"text": text}).encode()
    try:
        urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        # The address itself is a secret.
        raise UserError(f"{WEBHOOK}: nobody takes the message ({type(error).__name__}): check the secret") from None


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1:])))
