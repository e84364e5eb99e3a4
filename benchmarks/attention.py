"""What dropout in attention costs a training step: `python benchmarks/attention.py`.

Contract: all contenders run within every round in a random order, and only ratios of one round are
compared; median [quartiles] over the rounds. Compilation is apart. Kept bytes are those of
`jax.vjp` between forward and backward pass, less those of the step without dropout; memory is what
the compiled step takes besides its arguments.
Bars: fast within 1.05 of the step without dropout, threefry within 1.15; no bytes kept for masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from dropout_speed import measure
from flax import linen as nn
from flax import nnx

from thinned import attention

BATCH, TOKENS, WIDTH, HEADS = map(int, os.environ.get("SIZE", "8 128 128 4").split())
RATE, LAYERS = 0.1, 2
X = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, WIDTH))
CONTENDERS: dict[str, dict[str, Any]] = {
    "none": {"dropout_rate": 0.0},
    "flax": {},
    "threefry": {"attention_fn": attention},
    "fast": {"attention_fn": partial(attention, bits="fast")},
}
COMMON = {"dropout_rate": RATE, "broadcast_dropout": False, "deterministic": False}


class Block(nn.Module):
    contender: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {**COMMON, **CONTENDERS[self.contender]}
        x = x + nn.MultiHeadDotProductAttention(HEADS, **options)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))


class Network(nn.Module):
    contender: str
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind: Any = nn.remat(Block) if self.remat else Block
        for _ in range(LAYERS):
            x = kind(self.contender)(x)
        return x


def of_linen(contender: str, remat: bool) -> tuple[Callable[..., jax.Array], Any]:
    model = Network(contender, remat)
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    return lambda params, key: model.apply(params, X, rngs={"dropout": key}), params


class NnxBlock(nnx.Module):
    def __init__(self, contender: str, rngs: nnx.Rngs) -> None:
        options = {**COMMON, **CONTENDERS[contender]}
        self.attend = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs, **options)
        self.one, self.two = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.back = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, key: Any) -> jax.Array:
        x = x + self.attend(self.one(x), rngs=nnx.RngStream(key, tag="dropout"))
        return x + self.back(nnx.gelu(self.wide(self.two(x))))


def of_nnx(contender: str, remat: bool) -> tuple[Callable[..., jax.Array], Any]:
    blocks = nnx.List([NnxBlock(contender, nnx.Rngs(0)) for _ in range(LAYERS)])
    graph, params, rest = nnx.split(blocks, nnx.Param, ...)

    def forward(params: Any, key: Any) -> jax.Array:
        x = X
        for number, block in enumerate(nnx.merge(graph, params, rest)):
            inner, state = nnx.split(block)

            def run(state: Any, x: jax.Array, key: Any, inner: Any = inner) -> jax.Array:
                return nnx.merge(inner, state)(x, key)

            step = jax.checkpoint(run) if remat else run
            x = step(state, x, jax.random.fold_in(key, number))
        return x

    return forward, params


def kept(forward: Callable[..., jax.Array], params: Any) -> int:
    """Bytes between forward and backward pass."""
    pull = jax.eval_shape(lambda p, key: jax.vjp(lambda p: forward(p, key), p)[1], params, KEY)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


KEY = jax.random.key(2)


def main() -> None:
    print(f"{LAYERS} layers, [{BATCH}, {TOKENS}, {WIDTH}], {HEADS} heads, rate {RATE}")
    for name, make in (("Linen", of_linen), ("NNX", of_nnx)):
        for remat in (False, True):
            calls, bytes_kept, memory = {}, {}, {}
            for contender in CONTENDERS:
                forward, params = make(contender, remat)
                step = jax.jit(jax.grad(lambda p, key, f=forward: f(p, key).sum()))
                compiled = step.lower(params, KEY).compile()
                memory[contender] = compiled.memory_analysis().temp_size_in_bytes
                bytes_kept[contender] = kept(forward, params)
                calls[contender] = partial(compiled, params, KEY)
            print(f"\n{name}{', remat' if remat else ''}")
            seconds = measure(calls, 1)
            for contender, taken in seconds.items():
                low, middle, high = np.percentile(taken / seconds["none"], [25, 50, 75])
                more = bytes_kept[contender] - bytes_kept["none"]
                print(
                    f"  {contender:9} {middle:6.3f} [{low:.3f}, {high:.3f}]  kept {more:+12,} bytes"
                    f"  memory {memory[contender] / memory['none']:.3f}"
                )


if __name__ == "__main__":
    main()
