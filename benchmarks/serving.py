"""Load on loopback: python benchmarks/serving.py ARTIFACT [--others] [--clients N ...].

Requests per second, the 50th and 99th percentile of their seconds and the service's CPU time for
each with 1, 8 and 64 clients that ask one after another, each for one image (median of the rounds),
and how many times as many thinned answers as each of the others (median, least and most of the
rounds). With `--clients` that is all.

Then requests of which each tenth is malformed: none may be lost, and the service's memory has to
stay flat. Then clients that are killed, dawdle, or upload too much, while others ask on. `--others`
puts LitServe and a plain FastAPI application with the same program beside it, in turns (pip install
litserve fastapi).
Clients and services share the cores, so compare within a line only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

CLIENTS = (1, 8, 64)

COMMON = """
import base64, io, json, sys
import jax, numpy as np
from jax import export
from PIL import Image
from safetensors.numpy import load_file
folder, port = sys.argv[1], int(sys.argv[2])
about = json.load(open(folder + "/model.json"))
weights = jax.device_put(load_file(folder + "/weights.safetensors"))
name = "sampled" if about["samples"] else "plain"
call = jax.jit(export.deserialize(bytearray(open(f"{folder}/{name}.jax", "rb").read())).call)
more = (np.array(about["keys"], np.uint32),) if about["samples"] else ()
height, width, channels = about["image"]["shape"]

def read(text):
    image = Image.open(io.BytesIO(base64.b64decode(text))).convert("L" if channels == 1 else "RGB")
    return np.asarray(image.resize((width, height))).reshape(height, width, channels)

def predict(images):
    logits = np.asarray(call(weights, np.stack(images), *more))
    logits = logits.reshape(-1, len(images), len(about["classes"]))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)).mean(0)

def told(p):
    return {"class": about["classes"][int(p.argmax())], "probability": float(p.max())}
"""
FASTAPI = (
    COMMON
    + """
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
class Asked(BaseModel):
    images: list[str]
app = FastAPI()
@app.post("/predict")
def answer(asked: Asked):
    return {"results": [told(p) for p in predict([read(text) for text in asked.images])]}
predict([np.zeros((height, width, channels), np.uint8)])
uvicorn.run(app, port=port, log_level="error")
"""
)
LITSERVE = (
    COMMON
    + """
import litserve
class Api(litserve.LitAPI):
    def setup(self, device):
        self.sizes = (1, 4, 16, 64)
        for size in self.sizes:
            predict([np.zeros((height, width, channels), np.uint8)] * size)
    def decode_request(self, request):
        return read(request["images"][0])
    def batch(self, inputs):
        return inputs
    def predict(self, images):
        images = images if isinstance(images, list) else [images]
        size = next(size for size in self.sizes if size >= len(images))
        return list(predict(images + images[:1] * (size - len(images)))[:len(images)])
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return {"results": [told(output[0] if isinstance(output, list) else output)]}
if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(port=port, log_level="error", generate_client_file=False)
"""
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def started(words: list[str], port: int) -> psutil.Process:
    process = psutil.Process(subprocess.Popen(words, stdout=subprocess.DEVNULL).pid)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{words[0]} did not begin")


def services(folder: Path, others: bool) -> dict[str, tuple[psutil.Process, int]]:
    found = {}
    port = free_port()
    ours = [sys.executable, "-m", "thinned", "serve", str(folder), "--port", str(port)]
    found["thinned"] = started(ours, port), port
    for name, program in {"FastAPI": FASTAPI, "LitServe": LITSERVE}.items() if others else ():
        port = free_port()
        file = Path(f"/tmp/serving-{name}.py")
        file.write_text(program)
        found[name] = started([sys.executable, str(file), str(folder), str(port)], port), port
    return found


def bodies(folder: Path, count: int) -> list[bytes]:
    """Requests of one random image each."""
    shape = json.loads((folder / "model.json").read_text())["image"]["shape"]
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        array = random.integers(0, 256, shape, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(array[..., 0] if shape[2] == 1 else array).save(buffer, "PNG")
        made.append(json.dumps({"images": [base64.b64encode(buffer.getvalue()).decode()]}).encode())
    return made


MALFORMED = (
    b"",
    b"[" * 1000,
    b'{"images": ["/etc/passwd"]}',
    b'{"images": ["bm8="]}',
    b"\xff" * 99,
)


class Client:
    """One connection that asks one question after another."""

    async def open(self, port: int) -> Client:
        self.port = port
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def ask(self, body: bytes) -> int:
        """The status of the answer."""
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        lines = answer.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.writer.close()
            await self.open(self.port)
        return int(lines[0].split()[1])


async def load(port: int, clients: int, given: list[bytes]) -> tuple[float, list[float], list[int]]:
    """Seconds for all, the seconds of each, and their statuses."""
    seconds, statuses, left = list[float](), list[int](), iter(given)

    async def work() -> None:
        client = await Client().open(port)
        for body in left:
            began = time.perf_counter()
            statuses.append(await client.ask(body))
            seconds.append(time.perf_counter() - began)
        client.writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return time.perf_counter() - began, seconds, statuses


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a service so far, its children's as well."""
    each = (process, *process.children(recursive=True))
    return sum(sum(one.cpu_times()[:2]) for one in each)


def measured(
    process: psutil.Process, port: int, clients: int, given: list[bytes]
) -> tuple[float, float, float, float]:
    before = cpu_s(process)
    total, seconds, statuses = asyncio.run(load(port, clients, given))
    assert set(statuses) == {200}, set(statuses)
    p50, p99 = np.percentile(seconds, (50, 99))
    return len(given) / total, p50, p99, (cpu_s(process) - before) / len(given)


def compared(
    running: dict[str, tuple[psutil.Process, int]],
    clients: int,
    rounds: int,
    given: list[bytes],
) -> None:
    """A line for each service, asked in turns."""
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, (process, port) in running.items():
            found[name].append(measured(process, port, clients, given))
    for name, rows in found.items():
        rate, p50, p99, cpu = map(statistics.median, zip(*rows, strict=True))
        times = [own[0] / row[0] for own, row in zip(found["thinned"], rows, strict=True)]
        ratio = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        shown = "" if name == "thinned" else f"   thinned answers {ratio} times as many"
        print(
            f"{clients:>7}  {name:<10}{rate:>11.1f}{1e3 * p50:>11.1f}{1e3 * p99:>11.1f}"
            f"{1e3 * cpu:>11.2f}{shown}",
            flush=True,
        )


async def until_answered(port: int, sent: bytes, more: bytes = b"", pause: float = 1) -> int:
    """The status that a request gets of which the rest comes byte by byte, and is never whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def dawdle() -> None:
        for byte in more:
            writer.write(bytes([byte]))
            await asyncio.sleep(pause)

    rest = asyncio.create_task(dawdle())
    writer.write(sent)
    try:
        answer = await asyncio.wait_for(reader.readline(), 90)
        return int(answer.split()[1])
    finally:
        rest.cancel()
        writer.close()


async def hostile(port: int, given: list[bytes]) -> dict[str, object]:
    """What becomes of clients that behave badly, and of those that ask beside them."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    claimed = head + b"Content-Length: %d\r\n\r\n"

    async def killed(place: int) -> None:
        """Half of them while they send, half while they wait for the answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = given[place % len(given)]
        writer.write(claimed % len(body) + (body if place % 2 else body[:50]))
        await writer.drain()
        writer.transport.abort()

    huge = b"x" * 30_000_000
    chunks = head + b"Transfer-Encoding: chunked\r\n\r\n1c9c380\r\n" + huge
    slow = until_answered(port, claimed % 1000, b"[" * 80)
    others, found = load(port, 8, given * 10), {}
    found["slow"], found["huge"], found["huge in chunks"], beside, *_ = await asyncio.gather(
        slow,
        until_answered(port, claimed % len(huge) + huge[:1000]),
        until_answered(port, chunks),
        others,
        *map(killed, range(100)),
    )
    found["beside"] = set(beside[2])
    _, _, after = await load(port, 8, given)
    found["after"] = set(after)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    given, running = bodies(asked.artifact, 50), services(asked.artifact, asked.others)
    try:
        print("clients  service    requests/s     p50 ms     p99 ms     CPU ms")
        for clients in asked.clients or CLIENTS:
            part = (given * asked.requests)[: max(clients * 5, asked.requests // 20)]
            compared(running, clients, asked.rounds, part)
        if asked.clients:
            return
        process, port = running["thinned"]
        mixed = [
            MALFORMED[row // 10 % len(MALFORMED)] if row % 10 == 0 else given[row % len(given)]
            for row in range(asked.requests)
        ]
        half = len(mixed) // 2
        asyncio.run(load(port, 32, mixed[:half]))
        before = process.memory_info().rss
        _, _, first = asyncio.run(load(port, 32, mixed[:half]))
        _, _, rest = asyncio.run(load(port, 32, mixed[half:]))
        counts = {status: (first + rest).count(status) for status in sorted({*first, *rest})}
        grown = (process.memory_info().rss - before) / 1e6
        print(
            f"{len(mixed):,} requests, each tenth malformed: statuses {counts}, "
            f"memory {grown:+.1f} MB",
            flush=True,
        )
        assert sum(counts.values()) == len(mixed)
        assert counts[200] == len(mixed) - len(mixed[::10])
        told = asyncio.run(hostile(port, given))
        print("100 killed clients, a slow one, uploads of 30 MB:", told)
        assert told == {
            **{"slow": 408, "huge": 413, "huge in chunks": 413},
            **{"beside": {200}, "after": {200}},
        }
    finally:
        for process, _ in running.values():
            for each in (*process.children(recursive=True), process):
                each.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
