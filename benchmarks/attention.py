"""What dropout costs a transformer's training step: `python benchmarks/attention.py`.

A language model and a ViT (LAYERS=2; rate 0.1 on the weights of attention and on both branches,
as Vaswani et al. 2017) and an MLP (784-1024-1024-1024-10, rate 0.2, then 0.5, as Srivastava et al.
2014), each of Linen and of NNX, with and without remat of its blocks; loss, gradient and Adam.

Contract: all contenders run within every round in a random order, and only ratios of one round are
compared; median [quartiles] over the rounds. Compilation is apart. Kept bytes are those of
`jax.vjp` between forward and backward pass, less those of the step without dropout; memory is what
the compiled step takes besides its arguments, over that of the step without dropout. With CLOCK=cpu
it is CPU time, of all threads, that is compared.
Bars: fast within 1.05 of the step without dropout, threefry within 1.15; no bytes kept for masks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from dropout_speed import CLOCK, ROUNDS, measure
from flax import linen as nn
from flax import nnx

import thinned
import thinned.nnx

WIDTH, HEADS, WORDS = 128, 4, 256
LAYERS = int(os.environ.get("LAYERS", "2"))
CONTENDERS = ("none", "flax", "threefry", "fast")
KEY = jax.random.key(2)


class Task(NamedTuple):
    """What a network is given: inputs, labels, and whether it is an MLP, or has causal masks."""

    inputs: jax.Array
    labels: jax.Array
    causal: bool = False
    mlp: bool = False


def tasks() -> dict[str, Task]:
    words = jax.random.randint(jax.random.key(0), (8, 129), 0, WORDS)
    patches = jax.random.normal(jax.random.key(0), (16, 64, 48))
    pixels = jax.random.normal(jax.random.key(0), (100, 784))
    return {
        "language model, [8, 128] words": Task(words[:, :-1], words[:, 1:], causal=True),
        "ViT, 16 images of 64 patches": Task(patches, jnp.arange(16) % 10),
        "MLP, 100 images": Task(pixels, jnp.arange(100) % 10, mlp=True),
    }


def attention_options(contender: str) -> dict[str, Any]:
    ours = {"attention_fn": partial(thinned.attention, bits=contender)}
    return {
        "dropout_rate": 0.0 if contender == "none" else 0.1,
        "broadcast_dropout": False,
        "deterministic": False,
        **(ours if contender in ("threefry", "fast") else {}),
    }


def mask_of(task: Task) -> Any:
    return nn.make_causal_mask(task.inputs) if task.causal else None


class LinenDrop(nn.Module):
    contender: str
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.contender == "none":
            return x
        if self.contender == "flax":
            return nn.Dropout(self.rate, deterministic=False)(x)
        bits: Any = self.contender
        return thinned.Dropout(self.rate, deterministic=False, bits=bits)(x)


class LinenBlock(nn.Module):
    contender: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any) -> jax.Array:
        drop = partial(LinenDrop, self.contender, 0.1)
        attend = nn.MultiHeadDotProductAttention(HEADS, **attention_options(self.contender))
        x = x + drop()(attend(nn.LayerNorm()(x), mask=mask))
        return x + drop()(nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))))


class LinenLayer(nn.Module):
    contender: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any) -> jax.Array:
        return LinenDrop(self.contender, 0.5)(nn.relu(nn.Dense(1024)(x)))


class LinenNetwork(nn.Module):
    contender: str
    task: Task
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind: Any = LinenLayer if self.task.mlp else LinenBlock
        kind = nn.remat(kind) if self.remat else kind
        if self.task.mlp:
            x = LinenDrop(self.contender, 0.2)(x)
        else:
            x = nn.Embed(WORDS, WIDTH)(x) if self.task.causal else nn.Dense(WIDTH)(x)
            place = nn.initializers.normal(0.02)
            x = x + self.param("place", place, x.shape[1:])
        for _ in range(3 if self.task.mlp else LAYERS):
            x = kind(self.contender)(x, mask_of(self.task))
        if not (self.task.mlp or self.task.causal):
            x = x.mean(1)
        return nn.Dense(WORDS if self.task.causal else 10)(x)


def of_linen(contender: str, task: Task, remat: bool) -> tuple[Callable[..., jax.Array], Any]:
    model = LinenNetwork(contender, task, remat)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.jit(LinenNetwork("none", task, remat).init)(keys, task.inputs)
    return lambda params, key: model.apply(params, task.inputs, rngs={"dropout": key}), params


def nnx_drop(contender: str, rate: float) -> Callable[..., jax.Array]:
    if contender == "none":
        return lambda x, rngs: x
    if contender == "flax":
        return nnx.Dropout(rate)
    bits: Any = contender
    return thinned.nnx.Dropout(rate, bits=bits)


class NnxBlock(nnx.Module):
    def __init__(self, contender: str, rngs: nnx.Rngs) -> None:
        options = attention_options(contender)
        self.attend = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs, **options)
        self.one, self.two = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.back = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.drop = nnx_drop(contender, 0.1)

    def __call__(self, x: jax.Array, mask: Any, rngs: nnx.RngStream) -> jax.Array:
        x = x + self.drop(self.attend(self.one(x), mask=mask, rngs=rngs), rngs=rngs)
        return x + self.drop(self.back(nnx.gelu(self.wide(self.two(x)))), rngs=rngs)


class NnxLayer(nnx.Module):
    def __init__(self, contender: str, width: int, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(width, 1024, rngs=rngs)
        self.drop = nnx_drop(contender, 0.5)

    def __call__(self, x: jax.Array, mask: Any, rngs: nnx.RngStream) -> jax.Array:
        return self.drop(nnx.relu(self.dense(x)), rngs=rngs)


class NnxNetwork(nnx.Module):
    def __init__(self, contender: str, task: Task) -> None:
        rngs = nnx.Rngs(0)
        if task.mlp:
            blocks = [NnxLayer(contender, width, rngs) for width in (784, 1024, 1024)]
        else:
            blocks = [NnxBlock(contender, rngs) for _ in range(LAYERS)]
        self.first = nnx_drop(contender, 0.2) if task.mlp else None
        self.blocks = nnx.List(blocks)
        if not task.mlp:
            words = nnx.Embed(WORDS, WIDTH, rngs=rngs)
            self.embed = words if task.causal else nnx.Linear(48, WIDTH, rngs=rngs)
            self.place = nnx.Param(0.02 * rngs.params.normal((task.inputs.shape[1], WIDTH)))
        width, classes = 1024 if task.mlp else WIDTH, WORDS if task.causal else 10
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, task: Task, remat: bool, key: jax.Array) -> jax.Array:
        x, mask = task.inputs, mask_of(task)
        x = self.embed(x) + self.place[...] if self.first is None else x
        if self.first is not None:
            x = self.first(x, rngs=nnx.RngStream(key, tag="dropout"))
        for number, block in enumerate(self.blocks):
            graph, state = nnx.split(block)

            def run(state: Any, x: jax.Array, key: Any, graph: Any = graph) -> jax.Array:
                return nnx.merge(graph, state)(x, mask, nnx.RngStream(key, tag="dropout"))

            x = (jax.checkpoint(run) if remat else run)(state, x, jax.random.fold_in(key, number))
        return self.head(x if task.mlp or task.causal else x.mean(1))


def of_nnx(contender: str, task: Task, remat: bool) -> tuple[Callable[..., jax.Array], Any]:
    graph, params, rest = nnx.split(NnxNetwork(contender, task), nnx.Param, ...)
    return lambda params, key: nnx.merge(graph, params, rest)(task, remat, key), params


def kept(loss: Callable[..., jax.Array], params: Any) -> int:
    """Bytes between forward and backward pass."""
    pull = jax.eval_shape(lambda p, key: jax.vjp(lambda p: loss(p, key), p)[1], params, KEY)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


def step_of(loss: Callable[..., jax.Array], params: Any) -> tuple[Any, Callable[[], object]]:
    optimizer = optax.adam(1e-3)
    held = [params, optimizer.init(params), jnp.int32(0)]

    def step(params: Any, state: Any, number: jax.Array) -> Any:
        gradient = jax.grad(loss)(params, jax.random.fold_in(KEY, number))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, number + 1

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*held).compile()

    def call() -> object:
        held[:] = compiled(*held)
        return held

    return compiled, call


def compare(title: str, make: Callable[..., Any], task: Task, remat: bool) -> None:
    calls, bytes_kept, memory = {}, {}, {}
    for contender in CONTENDERS:
        forward, params = make(contender, task, remat)

        def loss(params: Any, key: jax.Array, forward: Any = forward) -> jax.Array:
            logits = forward(params, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, task.labels).mean()

        bytes_kept[contender] = kept(loss, params)
        compiled, calls[contender] = step_of(loss, params)
        memory[contender] = compiled.memory_analysis().temp_size_in_bytes
    print(f"\n{title}{', remat' if remat else ''}")
    seconds = measure(calls, 1)
    for contender, taken in seconds.items():
        low, middle, high = np.percentile(taken / seconds["none"], [25, 50, 75])
        more = bytes_kept[contender] - bytes_kept["none"]
        print(
            f"  {contender:9} {middle:6.3f} [{low:.3f}, {high:.3f}]"
            f" {np.median(taken) * 1e3:7.1f} ms  kept {more:+12,} bytes"
            f"  memory {memory[contender] / memory['none']:.3f}",
            flush=True,
        )


def main() -> None:
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{LAYERS} layers of width {WIDTH}, {HEADS} heads; {ROUNDS} rounds of {CLOCK.__name__}")
    for name, task in tasks().items():
        for library, make in (("Linen", of_linen), ("NNX", of_nnx)):
            if sys.argv[1:] and not any(word in f"{name} {library}" for word in sys.argv[1:]):
                continue
            for remat in (False, True):
                compare(f"{name}, {library}", make, task, remat)


if __name__ == "__main__":
    main()
