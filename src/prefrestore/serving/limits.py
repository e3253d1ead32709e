"""Refusing too much before it is read: ASGI layers around the predictor and the vote page."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


SESSION = re.compile(r"[0-9A-Za-z]{1,64}")
"""What a page calls itself. The framework waits for ever for a page without a name, and falls over it."""


class BodyLimit:
    """Reads bodies up to a limit before the application sees them; answers 413 to larger ones and 408 to slow ones."""

    def __init__(self, app: App, limit: int, seconds: float = 30.0) -> None:
        """Wrap ``app``; ``limit`` is in bytes, ``seconds`` is how long a body may take to come."""
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._seconds)
        except _RefusedError as error:
            await error.answer(scope, receive, send)
        except TimeoutError:
            await _RefusedError(408, f"the body did not come within {self._seconds:g} s").answer(scope, receive, send)
        else:
            await self._app(scope, _replaying(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        if _announced(scope) > self._limit:
            raise _RefusedError(413, f"the body is over {self._limit} bytes")
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._limit:
                raise _RefusedError(413, f"the body is over {self._limit} bytes")
            more = message.get("more_body", False)
        return bytes(body)


class Closed:
    """Answers 404 to paths that begin with one of some prefixes: what a framework brings and nobody here needs."""

    def __init__(self, app: App, prefixes: tuple[str, ...]) -> None:
        self._app, self._prefixes = app, prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(self._prefixes):
            await JSONResponse({"error": "not found"}, 404, {"connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Presses:
    """Answers 400 to what is no press of a button that the pages have: what no page sends goes no further.

    One with half a surrogate pair in it would be kept by the framework, and break what it does with later ones.
    """

    def __init__(self, app: App, path: str, inputs: Mapping[int, int], before: Callable[[], None]) -> None:
        """Wrap ``app``.

        ``inputs`` gives the number of inputs of each button, ``path`` is where presses are sent, ``before`` is called
        before each goes on.
        """
        self._app, self._path, self._inputs, self._before = app, path, inputs, before

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its body comes in one piece (:class:`BodyLimit`)."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        if self._is_press(body):
            self._before()
            await self._app(scope, _replaying(body, receive), send)
        else:
            await _RefusedError(400, "this is no press of a button").answer(scope, receive, send)

    def _is_press(self, body: bytes) -> bool:
        try:
            found = json.loads(body)
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):  # no JSON, or no text
            return False
        if not isinstance(found, dict):
            return False
        button, data, session = (found.get(name) for name in ("fn_index", "data", "session_hash"))
        if type(button) is not int or not isinstance(data, list) or self._inputs.get(button) != len(data):
            return False
        return isinstance(session, str) and SESSION.fullmatch(session) is not None


class Answering:
    """Answers 400 where the application fails before it has begun to answer, else ends the answer; logs a line."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun: MutableMapping[str, Any] | None = None

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = begun or message
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:  # a framework's own code raises anything on a body that its page never sends
            if scope["type"] != "http":
                raise
            did = "broke off" if begun else "refused"
            why = error.__cause__ if isinstance(error.__cause__, Exception) else error
            print(f"{did} {scope['method']} {scope['path']!r:.80}: {why!r:.200}", file=sys.stderr, flush=True)
            if not begun:
                await JSONResponse({"error": "this cannot be answered"}, 400)(scope, receive, send)
            elif b"content-length" not in dict(begun["headers"]):  # a stream; what was measured is left incomplete
                await send({"type": "http.response.body"})


class _RefusedError(Exception):
    """A body that is not read any further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.answer = JSONResponse({"error": reason}, status, {"connection": "close"})


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a receiver that gives the body in one piece, then what comes after it."""
    pieces = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> MutableMapping[str, Any]:
        piece = next(pieces, None)
        return await receive() if piece is None else piece

    return again


def _announced(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
