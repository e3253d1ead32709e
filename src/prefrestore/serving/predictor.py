"""The predictor: Open Inference Protocol (V2) over HTTP, health, Prometheus metrics.

Faces are restored one at a time at one batch shape, so that equal requests give equal bytes; more requests than may
wait are turned away (503) rather than piled up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from prometheus_client import Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from prefrestore import __version__
from prefrestore.data.images import UnreadableError, decode, encode_png
from prefrestore.serving.limits import BodyLimit
from prefrestore.serving.metrics import Metrics
from prefrestore.serving.model import Holder, ServedModel
from prefrestore.serving.protocol import BadRequestError, Question, metadata, read_request, write_response

MAX_ASPECT = 1.02
"""A face is square; this much is rounding of whoever cut it out."""


@dataclass(frozen=True)
class Limits:
    """What a caller may send.

    Attributes:
        body_bytes: largest body.
        image_pixels: largest picture, width times height.
        waiting: requests that may be in work or wait.
    """

    body_bytes: int
    image_pixels: int
    waiting: int


@dataclass(frozen=True)
class Service:
    """What requests need."""

    name: str
    holder: Holder
    metrics: Metrics
    limits: Limits
    admission: Admission
    worker: ThreadPoolExecutor


class _BusyError(Exception):
    """Too many requests wait."""


class Admission:
    """Counts the requests in work; the event loop alone uses it."""

    def __init__(self, limit: int, shown: Gauge) -> None:
        """Admit up to ``limit`` at once and show how many there are."""
        self._limit, self._shown, self._count = limit, shown, 0

    def __enter__(self) -> None:
        """Admit a request, or raise."""
        if self._count >= self._limit:
            raise _BusyError
        self._count += 1
        self._shown.set(self._count)

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self._count -= 1
        self._shown.set(self._count)


def create_app(name: str, holder: Holder, metrics: Metrics, limits: Limits) -> BodyLimit:
    """Return the application that serves a model under a name."""
    admission = Admission(limits.waiting, metrics.waiting)
    service = Service(name, holder, metrics, limits, admission, ThreadPoolExecutor(1, "restore"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        holder.close()
        service.worker.shutdown()

    app = FastAPI(title="Pref-Restore", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _refused)
    _add_health(app, service)
    _add_model(app, service)
    return BodyLimit(app, limits.body_bytes)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """Answer errors in the protocol's form."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "fault")
    return JSONResponse({"error": detail}, status)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/v2")
    def server() -> dict[str, Any]:
        return {"name": "prefrestore", "version": __version__, "extensions": []}

    @app.get("/v2/health/live")
    def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_model(app: FastAPI, service: Service) -> None:
    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    def model(name: str, version: str | None = None) -> dict[str, Any]:
        return metadata(service.name, _served(service, name, version).version)

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    def ready(name: str, version: str | None = None) -> dict[str, Any]:
        _served(service, name, version)
        return {"name": name, "ready": True}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        started = time.perf_counter()
        served = _served(service, name, version)
        status, content = await _answer(service, served, await request.body())
        service.metrics.requests.labels(str(status)).inc()
        if status == 200:
            service.metrics.seconds.observe(time.perf_counter() - started)
        return Response(content, status, {"retry-after": "1"} if status == 503 else {}, "application/json")


def _served(service: Service, name: str, version: str | None) -> ServedModel:
    model = service.holder.model
    if name != service.name or version not in (None, model.version):
        wanted = f"{name} version {version}" if version else name
        raise HTTPException(404, f"no model {wanted:.200}: {service.name} version {model.version} serves")
    return model


async def _answer(service: Service, model: ServedModel, body: bytes) -> tuple[int, str | bytes]:
    """Return status and JSON of the answer to a request's body."""
    try:
        with service.admission:
            question = await asyncio.to_thread(read_request, body)
            picture = await asyncio.to_thread(read_picture, question.image, service.limits.image_pixels)
            loop = asyncio.get_running_loop()
            restored = await loop.run_in_executor(service.worker, _restore, model, question, picture)
    except BadRequestError as error:
        return 400, _error(str(error))
    except UnreadableError as error:
        return 422, _error(f"image: {error}")
    except _BusyError:
        return 503, _error(f"{service.limits.waiting} requests wait already: try again")
    return 200, write_response(question, restored, service.name, model.version).model_dump_json()


def _error(message: str) -> bytes:
    return bytes(JSONResponse({"error": message}).body)


def _restore(model: ServedModel, question: Question, picture: Image.Image) -> bytes:
    return encode_png(np.asarray(model.restore(picture, question.text, question.seed)))


def read_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture of an aligned face.

    Raises:
        UnreadableError: it is no picture, too large, or not square.
    """
    pixels = decode(data, max_pixels)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UnreadableError(f"{width}x{height} is not square: send an aligned face")
    return Image.fromarray(pixels)
