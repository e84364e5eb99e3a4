"""A service on loopback around a network of NumPy: nothing is compiled."""

import http.client
import io
import json
import threading
from contextlib import contextmanager

import numpy as np
import uvicorn
from PIL import Image

from thinned.deploy.artifact import Artifact
from thinned.deploy.programs import Programs
from thinned.deploy.promises import Way
from thinned.deploy.server import Model, Service, bound_to
from thinned.runs.ood import Known
from thinned.trust.conformal import Conformal
from thinned.trust.selection import Selection

CLASSES = ("dark", "middle", "bright")


def by_brightness(weights, images):
    """Logits f32 [1, image, 3]: how near the mean pixel is to each class's."""
    mean = np.asarray(images, np.float32).mean((1, 2, 3)) / 255
    return -40 * np.square(mean[:, None] - np.array([0.0, 0.5, 1.0], np.float32))[None]


def sampled(weights, images, keys):
    shifts = np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None]
    return (by_brightness(weights, images) * (1 + 0.2 * shifts))[None]


WAY = Way(
    5,
    1.0,
    Selection(0.1, 0.95, 0.6, 90, 3, 100),
    Conformal("lac", 0.9, np.full(3, 0.7), 100, False),
    Known("energy", 3.0, 100, 5),
    0.05,
)


def artifact(
    network=sampled, classes=CLASSES, shape=(8, 8, 1), way=WAY, plain=by_brightness, samples=5
) -> Artifact:
    programs = Programs({}, plain, network, np.zeros((1, 2), np.uint32), samples)
    return Artifact("fake", classes, shape, "crop", programs, (way._replace(samples=0), way), "d1")


@contextmanager
def running(model: Model, bounds=None, grace=10):
    """A port that answers, and the service."""
    service = Service(model, bounds)
    with bound_to("127.0.0.1", 0) as bound:
        bound.listen()
        server = uvicorn.Server(
            uvicorn.Config(
                service.app, lifespan="off", log_level="error", timeout_graceful_shutdown=grace
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()[1], service, server
        finally:
            server.should_exit = True
            thread.join()


def ask(port, method, path, body=None, headers=None):
    """Status, headers and content of an answer, JSON read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        if answer.getheader("content-type", "").startswith("application/json"):
            content = json.loads(content)
        return answer.status, answer.headers, content
    finally:
        connection.close()


def png(value, size=(8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def multipart(files, field="image", named=True):
    name = '; filename="x.png"' if named else ""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'.encode() + content
        for content in files
    ]
    return b"\r\n".join([*parts, b"--b--\r\n"]), {"Content-Type": "multipart/form-data; boundary=b"}
