"""Monte Carlo dropout against one plain pass: `python benchmarks/sampling.py`.

Contract: 100 samples of the tutorial's CNN over the 10,000 test images of MNIST (500 for the
contenders that pass through the whole network for each sample, scaled up), all in every round in
random order, compiled before the first is timed; ratios to the plain pass of the same library in
the same round, median [quartiles]. The plain pass is our fastest, in batches of 100; batches of 500
are shown, too. Bar: at most 1.6 plain passes.

`python benchmarks/sampling.py early`: networks that drop near their inputs, where there is no trunk
to save: 20 samples of 500 images, ours over passing all images through the whole network for each
sample (which draws masks for each image). Bar: at most 1.05. With CLOCK=cpu, of CPU time.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dropout_speed import CLOCK
from flax import linen as nn

from thinned import Dropout
from thinned.data.batch import as_float
from thinned.data.sources.load import open_source
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.models.apply import predict
from thinned.models.cnn import CNN
from thinned.models.convolution import average_pool, conv_general_dilated
from thinned.trust.sampling import sample_predictions

ROUNDS, SAMPLES, FEW = int(os.environ.get("ROUNDS", "7")), 100, 500

IMAGES = np.asarray(open_source().load().test.images)
MODEL = CNN()
VARIABLES = dict(MODEL.init(jax.random.key(0), jnp.ones((1, 28, 28, 1))))
RATES = {**VARIABLES, "rates": {"Dropout_0": {"rate": jnp.float32(0.5)}}}
KEY = jax.random.key(1)


@jax.jit
def whole(images: jax.Array, key: jax.Array) -> jax.Array:
    with dropout_on():
        logits = MODEL.apply(RATES, as_float(images), rngs={"dropout": key})
    return jax.nn.softmax(logits)


def naive() -> None:
    images = jnp.asarray(IMAGES[:FEW])
    total = jnp.zeros((FEW, 10))
    for index in range(SAMPLES):
        for start in range(0, FEW, 100):
            key = jax.random.fold_in(KEY, index * 1000 + start)
            total = total.at[start : start + 100].add(whole(images[start : start + 100], key))
    jax.block_until_ready(total)


def torch_contenders() -> dict[str, Callable[[], object]]:
    try:
        import torch
        from torch import nn
    except ImportError:
        print("torch is not installed: `pip install torch` to compare with it")
        return {}

    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    convolutions += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(0.5), nn.Linear(3136, 10))
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2).float() / 255

    def run(count: int, samples: int) -> None:
        net.train(samples > 1)
        with torch.inference_mode():
            for _ in range(samples):
                for start in range(0, count, 100):
                    net(images[start : start + 100]).softmax(1)

    return {"torch plain": partial(run, 10_000, 1), "torch MC": partial(run, FEW, SAMPLES)}


class EarlyMlp(nn.Module):
    """Srivastava et al. (2014): a fifth of the inputs, half of each hidden layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Dropout(0.2, bits="fast", deterministic=not train)(x.reshape(len(x), -1))
        for _ in range(2):
            x = nn.relu(nn.Dense(1024)(x))
            x = Dropout(0.5, bits="fast", deterministic=not train)(x)
        return nn.Dense(10)(x)


class EarlyCnn(nn.Module):
    """The tutorial's CNN, with dropout before each layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features in (32, 64):
            x = Dropout(0.1, bits="fast", deterministic=not train)(x)
            x = nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)(x)
            x = average_pool(nn.relu(x))
        x = Dropout(0.5, bits="fast", deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def early() -> None:
    images = IMAGES[:FEW]
    for model in (EarlyMlp(), EarlyCnn()):
        variables = dict(model.init(jax.random.key(0), jnp.ones((1, 28, 28, 1))))

        @jax.jit
        def one(
            images: jax.Array, key: jax.Array, model: nn.Module = model, held: Any = variables
        ) -> jax.Array:
            with dropout_on():
                logits = model.apply(held, as_float(images), rngs={"dropout": key})
            return jax.nn.softmax(logits)

        def by_passes(one: Any = one) -> None:
            total = 0
            for index in range(20):
                for start in range(0, FEW, 100):
                    total += one(images[start : start + 100], jax.random.fold_in(KEY, index))
            jax.block_until_ready(total)

        def ours(model: nn.Module = model, held: Any = variables) -> None:
            sample_predictions(model.apply, held, images, KEY, 20)

        ratios = []
        for _ in range(ROUNDS + 1):
            start = CLOCK()
            ours()
            middle = CLOCK()
            by_passes()
            ratios.append((middle - start) / (CLOCK() - middle))
        # The first round compiles.
        low, middle, high = np.percentile(ratios[1:], [25, 50, 75])
        print(f"{type(model).__name__:17} {middle:8.2f} [{low:.2f}, {high:.2f}]", flush=True)


def main() -> None:
    if sys.argv[1:] == ["early"]:
        return early()
    print(f"python {platform.python_version()}, jax {jax.__version__}, {os.cpu_count()} cores")
    contenders: dict[str, Callable[[], object]] = {
        "plain": lambda: predict(MODEL.apply, VARIABLES, IMAGES),
        "plain, batch 500": lambda: predict(MODEL.apply, VARIABLES, IMAGES, 500),
        "ours": lambda: sample_predictions(MODEL.apply, RATES, IMAGES, KEY, SAMPLES),
        "naive loop": naive,
        **torch_contenders(),
    }
    for call in contenders.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for name in order.permutation(list(contenders)):
            start = time.perf_counter()
            contenders[name]()
            scale = len(IMAGES) / FEW if name in ("naive loop", "torch MC") else 1
            taken[name].append((time.perf_counter() - start) * scale)
    for name, seconds in taken.items():
        base = taken["torch plain" if name.startswith("torch") else "plain"]
        low, middle, high = np.percentile(np.asarray(seconds) / np.asarray(base), [25, 50, 75])
        print(f"{name:17} {middle:8.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
