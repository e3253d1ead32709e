"""Running the predictor as a process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from prefrestore.errors import UserError
from prefrestore.registry.loader import REGISTERED
from prefrestore.serving.metrics import Metrics
from prefrestore.serving.model import Holder

GRACE_SECONDS = 60
CONNECTIONS = 64
"""Connections beyond four for each request that may wait are refused; bodies are held in memory."""


@dataclass(frozen=True)
class Listening:
    """How the process runs.

    Attributes:
        host: address to listen on.
        port: 0 for one that is free.
        refresh: seconds between looks whether the model's address stands for another.
        threads: for one face. Two that have to share a core with others are many times slower than one.
    """

    host: str
    port: int
    refresh: float
    threads: int


def serve(address: str, registry: str, name: str | None, where: Listening, limits: Mapping[str, int]) -> None:
    """Load the model and answer until SIGTERM; requests in work are answered first.

    Raises:
        UserError: the model cannot be loaded, or the port is taken.
    """
    registered = REGISTERED.fullmatch(address)
    called = name or (registered["model"] if registered else "prefrestore")
    metrics = Metrics()
    holder = Holder(address, registry, metrics.exchanged)  # first: a wrong address is told before torch is loaded
    import torch
    import uvicorn

    from prefrestore.serving.predictor import Limits, create_app

    torch.set_num_threads(where.threads)
    holder.watch(where.refresh)
    app = create_app(called, holder, metrics, Limits(**limits))
    settings = uvicorn.Config(
        app,
        where.host,
        where.port,
        log_level="warning",
        server_header=False,
        limit_concurrency=CONNECTIONS + 4 * limits["waiting"],
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    try:
        socket = settings.bind_socket()
    except SystemExit:
        raise UserError(f"--port: {where.port} on {where.host} is taken or not ours: choose another") from None
    socket.listen()  # whoever reads the line below may connect
    host, port = socket.getsockname()[:2]
    print(f"serve: {called} version {holder.model.version} on http://{host}:{port}/v2", file=sys.stderr, flush=True)
    uvicorn.Server(settings).run(sockets=[socket])
