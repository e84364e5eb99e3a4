"""`thinned serve`: a classifier behind HTTP, bounded in every direction."""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib.resources
import json
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from scipy.special import softmax
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from thinned.core.errors import RequestError
from thinned.core.pages import STYLE
from thinned.data.decode import LARGEST_PIXELS, Unreadable, decode, or_reason, read_header
from thinned.deploy.artifact import Artifact, predicted
from thinned.deploy.batching import Batcher, Full
from thinned.deploy.openapi import docs_of, openapi_of
from thinned.deploy.promises import Way
from thinned.runs.answers import Answers

_SIZES = (1, 4, 16, 64)
"""Images in a compiled batch; others are padded to the next."""
_PHOTO = 3 * 96 * 96
_SMALL_PIXELS, _SMALL_BYTES = 64 * 64, 8192
"""Up to both, to decode an image takes less than to hand it to a thread and back."""
_TOP = 10
_SHOWN_SAMPLES = 100
_LOW = 0.8
_FEW_S = 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Bounds:
    """What a request, and all of them together, may take.

    Attributes:
        body_bytes: of a request.
        held_bytes: of the bodies of all requests.
        images: in a request.
        pixels: of an image, before it is resized.
        waiting: images that wait for their turn.
        read_s: seconds until a request has arrived.
        answer_s: seconds until it is answered.
    """

    body_bytes: int = 20_000_000
    held_bytes: int = 200_000_000
    images: int = 64
    pixels: int = LARGEST_PIXELS
    waiting: int = 256
    read_s: float = 30.0
    answer_s: float = 30.0


class Answered(NamedTuple):
    """What is said of an image.

    Attributes:
        row: see `thinned.runs.answers.Answers.rows`.
        probabilities: f64 [class].
        samples: f32 [sample, class], of each thinned network; a single one without samples.
    """

    row: dict[str, Any]
    probabilities: np.ndarray
    samples: np.ndarray


class Refused(Exception):
    """A request that gets no answer: a status and a line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Model:
    """What answers: one way of an artifact, compiled for a few sizes of batch.

    Args:
        artifact: what is asked.
        way: how.
    """

    def __init__(self, artifact: Artifact, way: Way) -> None:
        self.artifact, self.way = artifact, way
        self.answers: Answers = artifact.answers(way)
        large = np.prod(artifact.image_shape) >= _PHOTO
        self.sizes = _SIZES[:-1] if large else _SIZES

    def warm_up(self) -> None:
        """Compile what is needed, so that nothing is while requests wait."""
        for size in self.sizes:
            self([np.zeros(self.artifact.image_shape, np.uint8)] * size)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Answered]:
        """What is said of images u8 [height, width, channel], at most the largest size."""
        count = len(images)
        size = next(size for size in self.sizes if size >= count)
        padded = np.stack([*images, *[images[0]] * (size - count)])
        logits = self.artifact.logits(padded, self.way.samples)[:, :, :count]
        found = predicted(logits, self.way)
        samples = softmax(logits.reshape(-1, *logits.shape[2:]), 2)
        rows = self.answers.rows(padded[:count], found)
        return [
            Answered(row, found.probabilities[place], samples[:_SHOWN_SAMPLES, place])
            for place, row in enumerate(rows)
        ]

    def doubts(self, row: dict[str, Any]) -> list[str]:
        """Why an answer is not to be relied on, for people; none where it is."""
        selection, doubts = self.way.selection, list[str]()
        if not row.get("known", True):
            doubts.append("it looks like none of the classes")
        if "set" in row and len(row["set"]) != 1:
            doubts.append("several classes fit" if row["set"] else "no class fits")
        # A threshold that no answer can pass tells nothing of this one.
        if row.get("unsure") and selection is not None and np.isfinite(selection.threshold):
            doubts.append("answers as unsure as this are wrong too often")
        if self.way.sets is None and row["probability"] < _LOW:
            doubts.append(f"no class has a probability of {_LOW:.0%}")
        return doubts

    def about(self) -> dict[str, Any]:
        """What a client needs to know of it."""
        height, width, channels = self.artifact.image_shape
        return {
            "model": self.artifact.digest,
            "name": self.artifact.name,
            "classes": self.artifact.classes,
            "image": {"height": height, "width": width, "channels": channels},
            "samples": self.way.samples,
            "promises": self.answers.promises,
        }


class Service:
    """An application of Starlette around a model.

    Args:
        model: what answers.
        bounds: what requests may take.
    """

    def __init__(self, model: Model, bounds: Bounds | None = None) -> None:
        self.model, self.bounds = model, bounds or Bounds()
        self._batcher = Batcher(self._compute, model.sizes[-1], self.bounds.waiting)
        self._decoders = ThreadPoolExecutor(2, "decode")
        self.held = 0
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "thinned_requests", "Requests to /predict, by status.", ["status"], registry=registry
        )
        self._images = Counter("thinned_images", "Images answered.", registry=registry)
        self._doubted = Counter("thinned_doubted", "Of these, in doubt.", registry=registry)
        self._seconds = Histogram(
            "thinned_request_seconds", "From a request's head to its answer.",
            buckets=_FEW_S, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "thinned_batch_images", "Images that were computed together.",
            buckets=model.sizes, registry=registry,
        )  # fmt: skip
        waiting = Gauge("thinned_waiting_images", "Images that wait.", registry=registry)
        waiting.set_function(lambda: len(self._batcher))
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/predict", self._predict, methods=["POST"]),
                Route("/model", self._about),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/docs", self._docs),
            ],
            exception_handlers={HTTPException: _failed},
        )

    def _compute(self, images: Sequence[np.ndarray]) -> list[Answered]:
        self._batches.observe(len(images))
        return self.model(images)

    async def _predict(self, request: Request) -> Response:
        began, status = time.monotonic(), 200
        headers: dict[str, str] = {}
        try:
            content: dict[str, Any] = await self._answered(request)
        except Refused as error:
            status, content = error.status, {"error": error.reason}
            if status in (408, 413, 503):
                # What is still on its way is not read.
                headers["Connection"] = "close"
            if status == 503:
                headers["Retry-After"] = "1"
        self._requests.labels(str(status)).inc()
        self._seconds.observe(time.monotonic() - began)
        return JSONResponse(content, status, {**_HEADERS, **headers})

    async def _answered(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("multipart/form-data", "application/json"):
            raise Refused(415, "send images as multipart/form-data, or application/json")
        held = _Held(self)
        try:
            body = await held.body(request)
            files = await self._files(request, kind, body)
            images = await self._decoded(files)
            del body, files
        finally:
            held.release()
        readable = [image for image in images if not isinstance(image, str)]
        answers = iter(await self._asked(readable))
        detail = request.query_params.get("detail", "0") not in ("0", "")
        results = [
            {"error": image} if isinstance(image, str) else self._told(next(answers), detail)
            for image in images
        ]
        if not readable:
            raise Refused(422, f"no image can be read: {images[0]}")
        return {"model": self.model.artifact.digest, "results": results}

    async def _files(self, request: Request, kind: str, body: bytes) -> list[bytes]:
        if kind == "application/json":
            files = _of_json(body)
        else:
            files = await _of_multipart(request, body, self.bounds)
        if not 0 < len(files) <= self.bounds.images:
            raise Refused(400, f"{len(files)} images: send 1 to {self.bounds.images}")
        return files

    async def _decoded(self, files: Sequence[bytes]) -> list[np.ndarray | str]:
        if len(files) == 1 and (small := self._small(files[0])) is not None:
            return [small]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.bounds.answer_s):
                return await asyncio.gather(
                    *(loop.run_in_executor(self._decoders, self._image, file) for file in files)
                )
        except TimeoutError as error:
            raise Refused(503, "busy: try again") from error

    def _small(self, file: bytes) -> np.ndarray | None:
        """A small image; None where it is not, or cannot be read."""
        if len(file) > _SMALL_BYTES:
            return None
        small = or_reason(self._bounded, file, min(_SMALL_PIXELS, self.bounds.pixels))
        return None if isinstance(small, str) else small

    def _image(self, file: bytes) -> np.ndarray | str:
        return or_reason(self._bounded, file, self.bounds.pixels)

    def _bounded(self, file: bytes, most: int) -> np.ndarray:
        tall, wide = read_header(file).size
        if tall * wide > most:
            raise Unreadable(f"{wide} x {tall}: more than {most:,} pixels")
        height, width, channels = self.model.artifact.image_shape
        return decode(file, (height, width), channels, self.model.artifact.fit)

    async def _asked(self, images: Sequence[np.ndarray]) -> list[Answered]:
        try:
            async with asyncio.timeout(self.bounds.answer_s):
                return await self._batcher.ask(images)
        except (Full, TimeoutError) as error:
            raise Refused(503, "busy: try again") from error

    def _told(self, answered: Answered, detail: bool) -> dict[str, Any]:
        row, doubts = answered.row, self.model.doubts(answered.row)
        self._images.inc()
        self._doubted.inc(bool(doubts))
        told = {**row, "doubts": doubts}
        if detail:
            order = np.argsort(-answered.probabilities, kind="stable")[:_TOP]
            told["top"] = [
                {
                    "class": self.model.artifact.classes[place],
                    "probability": float(answered.probabilities[place]),
                    "samples": np.round(answered.samples[:, place], 4).astype(float).tolist(),
                }
                for place in order
            ]
        return told

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE, headers=_HEADERS)

    async def _about(self, request: Request) -> Response:
        return JSONResponse(self.model.about(), headers=_HEADERS)

    async def _health(self, request: Request) -> Response:
        # Nothing listens before all is compiled.
        told = {"status": "ready", "model": self.model.artifact.digest}
        return JSONResponse(told, headers=_HEADERS)

    async def _metrics(self, request: Request) -> Response:
        content = generate_latest(self._registry)
        return Response(content, media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi_of(self.bounds.images), headers=_HEADERS)

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(docs_of(openapi_of(self.bounds.images)), headers=_HEADERS)


_PAGE = (
    importlib.resources.files("thinned.deploy")
    .joinpath("page.html")
    .read_text("utf-8")
    .replace("/* the style of every page of ours comes here */", STYLE)
)


class _Held:
    """The bytes of a request's body among those of all."""

    def __init__(self, service: Service) -> None:
        self._service, self._count = service, 0

    async def body(self, request: Request) -> bytes:
        """The body, as far as the bounds let it in.

        Raises:
            Refused: it is too large, or too slow, or there are too many at once.
        """
        bounds, parts = self._service.bounds, list[bytes]()
        said = request.headers.get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > bounds.body_bytes:
            raise Refused(413, f"more than {bounds.body_bytes:,} bytes")
        try:
            async with asyncio.timeout(bounds.read_s):
                async for part in request.stream():
                    self._hold(len(part))
                    parts.append(part)
        except TimeoutError as error:
            raise Refused(408, f"the request took more than {bounds.read_s:g} s") from error
        except ClientDisconnect as error:
            raise Refused(400, "the request was cut short") from error
        return b"".join(parts)

    def _hold(self, count: int) -> None:
        service, bounds = self._service, self._service.bounds
        self._count += count
        service.held += count
        if self._count > bounds.body_bytes:
            raise Refused(413, f"more than {bounds.body_bytes:,} bytes")
        if service.held > bounds.held_bytes:
            raise Refused(503, "busy: try again")

    def release(self) -> None:
        """Count them no longer."""
        self._service.held -= self._count


def _of_json(body: bytes) -> list[bytes]:
    try:
        images = json.loads(body)["images"]
        if not isinstance(images, list):
            raise TypeError
        return [base64.b64decode(image, validate=True) for image in images]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused(400, 'send {"images": [BASE64, ...]}') from error


async def _of_multipart(request: Request, body: bytes, bounds: Bounds) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes]:
        yield body

    parser = MultiPartParser(
        request.headers, stream(), max_files=bounds.images, max_fields=0, max_part_size=1024
    )
    # Nothing goes to the disk: the body is bounded already.
    parser.spool_max_size = bounds.body_bytes
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Refused(400, f"send image files as multipart/form-data: {reason}") from error
    try:
        return [await file.read() for _, file in form.multi_items() if not isinstance(file, str)]
    finally:
        await form.close()


async def _failed(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    told = {404: "there is no such page", 405: "this page takes another method"}
    return JSONResponse({"error": told.get(status, "failed")}, status, _HEADERS)


def bound_to(host: str, port: int) -> socket.socket:
    """A socket with that address, which does not listen yet.

    Raises:
        RequestError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot listen on {host} port {port}: {reason}") from error
    return made


def serve(service: Service, bound: socket.socket) -> None:
    """Answer until a signal: then what has begun is answered, and nothing new."""
    config = uvicorn.Config(
        service.app,
        access_log=False,
        log_level="error",
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=60,
        timeout_keep_alive=30,
    )
    uvicorn.Server(config).run(sockets=[bound])
