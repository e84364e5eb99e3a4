"""The one place where a key becomes random bits."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from thinned.types import Key

Bits = Literal["threefry", "fast"]
"""The generators. ``threefry``: the bits of `jax.random.bits`. ``fast``: a keyed mix hash."""


def random_bits(key: Key, shape: tuple[int, ...], bits: Bits = "threefry") -> jax.Array:
    """Uniform random words, u32 of `shape`, a pure function of the arguments."""
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    size = math.prod(shape)
    counter = jnp.arange(size, dtype=jnp.uint32)
    draw = _threefry if bits == "threefry" else _fast
    return draw(words, counter).reshape(shape)


def _threefry_block(words, x0, x1):
    k0, k1 = words[..., 0], words[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def _threefry(words, counter):
    x0, x1 = _threefry_block(words, jnp.zeros_like(counter), counter)
    return x0 ^ x1


def _fast(words, counter):
    a, b = _threefry_block(words, jnp.uint32(0xFFFFFFFF), jnp.uint32(0))
    c, _ = _threefry_block(words, jnp.uint32(0xFFFFFFFF), jnp.uint32(1))
    x = counter ^ a
    x = x * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 16)) ^ b
    x = x * jnp.uint32(0xD35A2D97)
    x = (x ^ (x >> 15)) ^ c
    x = x * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
