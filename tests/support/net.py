"""Ports of this machine."""

from __future__ import annotations

import contextlib
import socket


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])
