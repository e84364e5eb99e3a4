"""What dropout costs: `python benchmarks/dropout_speed.py`.

Contract: all contenders of a table run within every round in a random order, and
only ratios of one round are compared; median [quartiles] over the rounds. Compilation is apart.
Bars: threefry at least 10 times as fast as Flax and torch, fast within 1.5 times of `x * 2`; a step
within 1.02 (fast) and 1.06 (threefry) of the step without dropout; every other kind within 1.1 of
its own step without randomness; no bytes kept for masks.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from thinned.dropout.functional import dropout
from thinned.dropout.sites import DropoutSpec
from thinned.models.cnn import CNN

ROUNDS = int(os.environ.get("ROUNDS", "21"))
# The CPU time of all threads, where others work on the same cores: they stretch the wall's.
CLOCK = time.process_time if os.environ.get("CLOCK") == "cpu" else time.perf_counter
Contenders = dict[str, Callable[[], object]]

try:
    import torch
except ImportError:
    torch = None
    print("torch is not installed: `pip install torch` to compare with it")


def measure(contenders: Contenders, repeats: int) -> dict[str, np.ndarray]:
    """Seconds per call, [round], by name; the first call of each is reported apart."""
    for name, call in contenders.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        print(f"  first call {name}: {time.perf_counter() - start:.2f} s")
    seconds = {name: np.zeros(ROUNDS) for name in contenders}
    names = list(contenders)
    order = np.random.default_rng(0)
    for turn in range(ROUNDS):
        # A fixed cycle would always run one contender in the wake of the same other one.
        for name in order.permutation(names):
            jax.block_until_ready(contenders[name]())
            start = CLOCK()
            for _ in range(repeats):
                jax.block_until_ready(contenders[name]())
            seconds[name][turn] = (CLOCK() - start) / repeats
    return seconds


def report(title: str, contenders: Contenders, base: str, repeats: int) -> None:
    print(f"\n{title} (ratio to {base}; {ROUNDS} rounds of {repeats})")
    seconds = measure(contenders, repeats)
    for name, taken in seconds.items():
        low, middle, high = np.percentile(taken / seconds[base], [25, 50, 75])
        print(f"  {name:14} {middle:7.3f} [{low:.3f}, {high:.3f}]  {np.median(taken) * 1e3:.3f} ms")


def flax_dropout(x, key):
    return nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": key})


def ours(bits):
    return lambda x, key: dropout(x, 0.5, key, bits=bits)


APPLIED = {
    "x * 2": lambda x, key: x * 2,
    "flax": flax_dropout,
    "threefry": ours("threefry"),
    "fast": ours("fast"),
}


def gradient_of(apply):
    return lambda x, key, weight: jax.vjp(lambda x: apply(x, key), x)[1](weight)[0]


def both_of(apply):
    def both(x, key, weight):
        out, pull = jax.vjp(lambda x: apply(x, key), x)
        return out, pull(weight)[0]

    return both


def torch_call(numbers: np.ndarray, mode: str) -> Callable[[], object]:
    x = torch.tensor(numbers, requires_grad=mode != "forward")
    weight = torch.ones_like(x)
    drop = torch.nn.functional.dropout
    made = drop(x, 0.5)

    def forward():
        return drop(x, 0.5).numpy()

    def gradient():
        return torch.autograd.grad(made, x, weight, retain_graph=True)[0].numpy()

    def both():
        return torch.autograd.grad(drop(x, 0.5), x, weight)[0].numpy()

    return {"forward": forward, "gradient": gradient, "both": both}[mode]


def masks() -> None:
    numbers = np.random.default_rng(0).normal(size=(1024, 3136)).astype(np.float32)
    x, weight, key = jnp.asarray(numbers), jnp.ones((1024, 3136)), jax.random.key(0)
    forms = {
        "forward": lambda apply: lambda x, key, weight: apply(x, key),
        "gradient": gradient_of,
        "both": both_of,
    }
    for mode, form in forms.items():
        calls: Contenders = {}
        for name, apply in APPLIED.items():
            compiled = jax.jit(form(apply))
            calls[name] = lambda compiled=compiled: compiled(x, key, weight)
        if torch is not None:
            calls["torch"] = torch_call(numbers, mode)
        report(f"1024 x 3136 f32, {mode}", calls, "x * 2", 3)


class Paper(nn.Module):
    """784-1024-1024-1024-10 of Srivastava et al. (2014), appendix B.1."""

    drop: str

    def thin(self, x, rate):
        if self.drop == "none":
            return x
        key = self.make_rng("dropout")
        if self.drop == "flax":
            return nn.Dropout(rate, deterministic=False)(x, rng=key)
        return dropout(x, rate, key, bits=self.drop)

    @nn.compact
    def __call__(self, x):
        x = self.thin(x.reshape(len(x), -1), 0.2)
        for _ in range(3):
            x = self.thin(nn.relu(nn.Dense(1024)(x)), 0.5)
        return nn.Dense(10)(x)


class Tutorial(Paper):
    """The CNN of Flax's dropout tutorial."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(self.thin(x.reshape(len(x), -1), 0.5))


def step_call(
    model: nn.Module, batch: int, options: dict[str, bool] | None = None
) -> Callable[[], object]:
    options = options or {}
    x = jax.random.normal(jax.random.key(0), (batch, 28, 28, 1))
    labels = jnp.arange(batch) % 10
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    parameters = model.init(keys, x, **options)
    optimizer = optax.sgd(0.01, momentum=0.9)
    held = [parameters, optimizer.init(parameters), 0]

    def step(parameters, state, index):
        key = jax.random.fold_in(jax.random.key(3), index)

        def loss(parameters):
            logits = model.apply(parameters, x, rngs={"dropout": key}, **options)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return optax.apply_updates(parameters, updates), state, index + 1

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def call():
        held[:] = compiled(*held)
        return held

    return call


def steps() -> None:
    for title, model, batch, repeats in (
        ("paper's net, batch 100, SGD step", Paper, 100, 5),
        ("tutorial's CNN, batch 32, SGD step", Tutorial, 32, 3),
    ):
        kinds = ("none", "flax", "threefry", "fast")
        report(title, {kind: step_call(model(kind), batch) for kind in kinds}, "none", repeats)


def kinds() -> None:
    """Each kind in our CNN, dropping 7 x 7 x 64 maps (connect: 3136 x 10 weights)."""
    for kind in ("channel", "block", "path", "gaussian", "alpha", "concrete", "connect"):
        nets = {
            "none": CNN(dropout=DropoutSpec(rate=0.0)),
            "threefry": CNN(dropout=DropoutSpec(kind, bits="threefry", block_size=3)),
            "fast": CNN(dropout=DropoutSpec(kind, bits="fast", block_size=3)),
        }
        calls = {name: step_call(net, 32, {"train": True}) for name, net in nets.items()}
        report(f"{kind}: our CNN, batch 32, SGD step", calls, "none", 3)


def memory() -> None:
    print("\nsix 1024 x 2048 dropouts under gradient: bytes beyond those without dropout")
    x, weight = jnp.ones((1024, 2048)), jnp.ones((2048, 2048))
    base = None
    plain = {"x * 2": APPLIED["x * 2"]}
    for name, apply in {**plain, **APPLIED}.items():

        def loss(x, weight, key, apply=apply):
            for layer in range(6):
                x = apply(jnp.tanh(x @ weight), jax.random.fold_in(key, layer))
            return x.sum()

        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(x, weight, jax.random.key(0))
        size = lowered.compile().memory_analysis().temp_size_in_bytes
        base = size if base is None else base
        print(f"  {name:14} {size - base:+,d} of {base:,d}")


def main() -> None:
    print(f"python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}")
    print(f"torch {torch.__version__ if torch else 'absent'}, {os.cpu_count()} cores")
    print(f"backend {jax.default_backend()}, {platform.machine()}, load {os.getloadavg()[0]:.1f}")
    wanted = sys.argv[1:] or ["masks", "steps", "kinds", "memory"]
    for name in wanted:
        {"masks": masks, "steps": steps, "kinds": kinds, "memory": memory}[name]()


if __name__ == "__main__":
    main()
