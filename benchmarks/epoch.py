"""Training speed of the tutorial's CNN: ours, plain Flax, PyTorch, and the roofline, interleaved.

    make bench            (or: python benchmarks/epoch.py [--rounds 7] [--steps 150])

Every round runs each contestant once for the same number of steps; what is printed is the ratio
within a round, as median [quartiles] over rounds, since absolute times on a shared machine mean
little. Compilation, and the time to the first finished step, are timed apart, in fresh processes.

Contestants, all in f32, batch 32, Adam 0.001, dropout 0.5, all 60,000 MNIST images in memory:
  ours       thinned's compiled chunk of steps, bits `fast` (the trainer's default) and `threefry`
  plain      the tutorial's own loop in Flax, a fresh key at each step, as printed otherwise
  torch      PyTorch in eager, channels-last, and compiled mode; the best of them counts
  roofline   the rate of a 1024 x 1024 matrix product here, over 23.1 MFLOP an image and step
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 32
FLOP_PER_IMAGE = 23.1e6
Runner = Callable[[int], None]


def ours(bits: str) -> Runner:
    import jax
    import jax.numpy as jnp

    from thinned.core.config import Config, with_values
    from thinned.data.facts import Facts
    from thinned.data.sources.load import load_data
    from thinned.engine.build import Built
    from thinned.engine.devices import on_device
    from thinned.engine.plan import CHUNK_STEPS, Plan
    from thinned.engine.step import train_steps

    config = with_values(Config(), {"dropout": {"bits": bits}}, "bench")
    dataset = load_data(config)
    state, data = (
        Built.of(config, Facts.of(dataset, config)).initial_state(),
        on_device(dataset.train),
    )
    plan, done = Plan(config, len(dataset.train), {"Dropout_0": 0.5}), 0

    def run(steps: int) -> None:
        nonlocal state, done
        while steps:
            chunk, count = plan.chunk(done, min(steps, CHUNK_STEPS))
            state, sums = train_steps(state, data, chunk, jnp.int32(count))
            jax.device_get(sums)
            done, steps = done + count, steps - count

    return run


def plain() -> Runner:
    """The tutorial's loop: its model, losses and metrics, f32 images, batches by fancy indexing."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.training import train_state

    from thinned.data.sources.load import open_source

    class CNN(nn.Module):
        training: bool

        @nn.compact
        def __call__(self, x):
            for features in (32, 64):
                x = nn.relu(nn.Conv(features, (3, 3))(x))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = x.reshape((x.shape[0], -1))
            x = nn.Dropout(0.5, deterministic=not self.training)(x)
            return nn.Dense(10)(x)

    def cross_entropy(logits, labels):
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 10)).mean()

    @jax.jit
    def train_step(state, batch, key):
        def loss_fn(params):
            logits = CNN(True).apply({"params": params}, batch["image"], rngs={"dropout": key})
            return cross_entropy(logits, batch["label"]), logits

        grads, logits = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics = {
            "loss": cross_entropy(logits, batch["label"]),
            "accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"]),
        }
        return state.apply_gradients(grads=grads), metrics

    split = open_source().load().train
    train = {"image": jnp.float32(split.images) / 255.0, "label": jnp.asarray(split.labels)}
    params = CNN(False).init(jax.random.key(0), jnp.ones([1, 28, 28, 1]))["params"]
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(0.001))
    root, rows, done = jax.random.key(1), np.random.default_rng(0).permutation(60_000), 0

    def run(steps: int) -> None:
        nonlocal state, done
        collected = []
        for _ in range(steps):
            perm = rows[done * BATCH % 60_000 :][:BATCH]
            batch = {name: value[perm, ...] for name, value in train.items()}
            state, metrics = train_step(state, batch, jax.random.fold_in(root, done))
            collected.append(metrics)
            done += 1
        jax.device_get(collected)

    return run


def pytorch(mode: str) -> Runner:
    import torch
    from torch import nn
    from torch.nn import functional

    from thinned.data.sources.load import open_source

    class CNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 32, 3, padding=1)
            self.second = nn.Conv2d(32, 64, 3, padding=1)
            self.dense = nn.Linear(64 * 7 * 7, 10)

        def forward(self, x):
            x = functional.avg_pool2d(functional.relu(self.first(x)), 2)
            x = functional.avg_pool2d(functional.relu(self.second(x)), 2)
            return self.dense(functional.dropout(x.flatten(1), 0.5, self.training))

    layout = torch.channels_last if "channels-last" in mode else torch.contiguous_format
    model = CNN().to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 0.001, fused=True)
    forward = torch.compile(model) if mode.startswith("compile") else model
    split = open_source().load().train
    images = torch.tensor(split.images).permute(0, 3, 1, 2)
    labels = torch.tensor(split.labels, dtype=torch.int64)
    rows, done = torch.randperm(60_000), 0

    def run(steps: int) -> None:
        nonlocal done
        total = torch.zeros(())
        for _ in range(steps):
            perm = rows[done * BATCH % 60_000 :][:BATCH]
            x = (images[perm].float() / 255.0).to(memory_format=layout)
            optimizer.zero_grad()
            loss = functional.cross_entropy(forward(x), labels[perm])
            loss.backward()
            optimizer.step()
            total += loss.detach()
            done += 1
        total.item()

    return run


def roofline() -> Runner:
    """Matrix products that take as many operations as the steps asked for."""
    import jax
    import jax.numpy as jnp

    side = 1024
    a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    product = jax.jit(lambda x, y: x @ y)

    def run(steps: int) -> None:
        out = a
        for _ in range(round(steps * BATCH * FLOP_PER_IMAGE / (2 * side**3))):
            out = product(a, a)
        jax.block_until_ready(out)

    return run


CONTESTANTS: dict[str, Callable[[], Runner]] = {
    "plain": plain,
    "ours, fast": lambda: ours("fast"),
    "ours, threefry": lambda: ours("threefry"),
    "torch eager": lambda: pytorch("eager"),
    "torch channels-last": lambda: pytorch("channels-last"),
    "torch compile": lambda: pytorch("compile"),
    "torch compile channels-last": lambda: pytorch("compile channels-last"),
    "roofline": roofline,
}


def spread(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:5.2f} [{low:.2f}, {high:.2f}]"


def available() -> dict[str, Callable[[], Runner]]:
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: its rows are left out (pip install torch)")
        return {n: make for n, make in CONTESTANTS.items() if not n.startswith("torch")}
    return CONTESTANTS


def race(rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Images per second [round] of each contestant; the order turns by one each round."""
    runners: dict[str, Runner] = {}
    for name, make in available().items():
        try:
            runners[name] = make()
            runners[name](3)
        except Exception as error:
            print(f"{name}: left out, {type(error).__name__}: {str(error)[:120]}")
            runners.pop(name, None)
    names, times = list(runners), {name: [] for name in runners}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            runners[name](steps)
            times[name].append(steps * BATCH / (time.perf_counter() - started))
    return {name: np.asarray(values) for name, values in times.items()}


def first_step(name: str) -> dict[str, float]:
    """In this process: seconds until the first step is done, and the peak memory of 200 steps."""
    started = time.perf_counter()
    run = CONTESTANTS[name]()
    ready = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(200)
    return {"setup_s": ready - started, "first_s": first - ready, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """High-water mark of this process's own memory (getrusage would count the parent's too)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cold(name: str, cache: str | None) -> dict[str, float]:
    """`first_step` in a fresh process, with or without a compilation cache on disk."""
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true" if cache else "false"
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    command = [sys.executable, __file__, "--first-step", name]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(out.stdout.splitlines()[-1])


def header(rounds: int, steps: int) -> None:
    from importlib.metadata import version

    import jax

    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    print(f"# {packages}; Python {platform.python_version()}; {jax.devices()[0].device_kind}")
    print(f"# {os.cpu_count()} cores; {rounds} rounds of {steps} steps of {BATCH} images")


def report(speeds: dict[str, np.ndarray]) -> None:
    for name, values in speeds.items():
        print(f"{name:28s} x plain {spread(values / speeds['plain'])}", end="")
        print(f"   of roofline {spread(values / speeds['roofline'])}")
    peers = [values for name, values in speeds.items() if name.startswith("torch")]
    if peers:
        best = max(peers, key=np.median)
        print(f"ours, fast / best torch        {spread(speeds['ours, fast'] / best)}")
    print(f"ours, fast / plain (bar 1.5)   {spread(speeds['ours, fast'] / speeds['plain'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--first-step", choices=list(CONTESTANTS))
    arguments = parser.parse_args()
    if arguments.first_step:
        print(json.dumps(first_step(arguments.first_step)))
        return
    header(arguments.rounds, arguments.steps)
    report(race(arguments.rounds, arguments.steps))
    import tempfile

    with tempfile.TemporaryDirectory() as cache:
        for name in ("plain", "ours, fast"):
            once, _, again = cold(name, None), cold(name, cache), cold(name, cache)
            print(
                f"{name:12s} first step {once['first_s']:.1f} s, from the compilation cache "
                f"{again['first_s']:.1f} s; peak memory {once['peak_mib']:.0f} MiB"
            )


if __name__ == "__main__":
    main()
