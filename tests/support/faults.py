"""A server in front of another that fails on demand, and one that remembers what it is sent."""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PASSED = ("Content-Type", "Authorization")


def _start(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class FaultyProxy:
    """Passes requests on; ``faults`` are used up one per request whose method and path start with ``only``.

    A fault is ``"500"`` (the request is not passed on), ``"cut"`` (it is, but no answer comes back) or ``"none"``. With
    ``token`` other bearers are refused.
    """

    def __init__(self, target: str, token: str | None = None) -> None:
        self.target, self.token, self.only = target, token, ""
        self.faults: deque[str] = deque()
        self.used: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.token is not None and self.headers.get("Authorization") != f"Bearer {proxy.token}":
                    self._answer(401, b"{}")
                    return
                fault = proxy.fault(f"{self.command} {self.path}")
                if fault == "500":
                    self._answer(500, b'{"message": "fault of the test"}')
                    return
                code, answer = self._asked(body)
                if fault == "cut":
                    self.close_connection = True
                    return
                self._answer(code, answer)

            def _asked(self, body: bytes) -> tuple[int, bytes]:
                headers = {name: self.headers[name] for name in PASSED if name in self.headers}
                request = Request(proxy.target + self.path, body or None, headers, method=self.command)
                try:
                    with urlopen(request, timeout=60) as answer:
                        return answer.status, answer.read()
                except HTTPError as error:
                    return error.code, error.read()

            def _answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = _pass  # noqa: N815  the names of http.server

            def log_message(self, *_: object) -> None:
                pass

        self.server = _start(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fault(self, request: str) -> str:
        """Return the next fault if it is this request's."""
        if not self.faults or not request.startswith(self.only):
            return "none"
        fault = self.faults.popleft()
        self.used[fault] += 1
        return fault

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()


class Webhook:
    """Remembers the lines that it is sent."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        lines = self.lines

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                lines.append(content["text"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = _start(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
