"""Alerts: one line into the log and, where there is a webhook, to people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from copy import copy
from typing import Any

import httpx
from airflow.sdk import BaseHook, BaseNotifier, Connection
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import AirflowNotFoundException

CONNECTION = "prefrestore_webhook"
"""Optional; its password is the address, since who knows the address may write there."""
SECONDS = 10.0
log = logging.getLogger(__name__)


class Alert(BaseNotifier):
    """Tells people one line, in the form that Slack, Teams and Mattermost read; a webhook that fails is logged only."""

    template_fields: Sequence[str] = ("text",)

    def __init__(self, text: str, **kwargs: Any) -> None:
        """Set the line, a template."""
        super().__init__(**kwargs)
        self.text = text

    def __call__(self, *args: Any) -> None:
        """Tell it of one context; a copy does, since Airflow writes the text over the template."""
        super(Alert, copy(self)).__call__(*args)

    def notify(self, context: Context) -> None:  # noqa: ARG002  Airflow's signature
        """Tell it."""
        tell(self.text)

    async def async_notify(self, context: Context) -> None:  # noqa: ARG002  Airflow's signature
        """Tell it from a triggerer."""
        await tell_async(self.text)


def tell(text: str) -> None:
    """Tell people one line."""
    try:
        connection = BaseHook.get_connection(CONNECTION)
    except AirflowNotFoundException:
        connection = None
    post(text, connection)


async def tell_async(text: str) -> None:
    """Tell people one line, from a triggerer."""
    try:
        connection = await BaseHook.aget_connection(CONNECTION)
    except AirflowNotFoundException:
        connection = None
    await asyncio.to_thread(post, text, connection)


def post(text: str, connection: Connection | None) -> None:
    """Log a line and send it to the webhook of a connection, if there is one."""
    line = " ".join(text.split())
    log.warning("alert: %s", line)
    if connection is None:
        return
    try:
        httpx.post(str(connection.password), json={"text": line}, timeout=SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # the address is a secret, and an alert that cannot be sent must not fail what it tells about
        log.error("alert: the webhook of connection %r does not take it (%s)", CONNECTION, type(error).__name__)
