"""Randomness as an address: every draw is a pure function of (seed, stream, step or epoch).

Nothing in Thinned carries a key from step to step. A key is computed where it is needed, from
numbers that a checkpoint already holds, so that resuming needs no random state and a new stream
disturbs no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.errors import RequestError
from thinned.core.types import Key

Stream = Literal["params", "shuffle", "split", "dropout", "augment", "sample"]
"""The named streams. `split` holds out images, `sample` draws masks at prediction time, and images
to look at; the others say what they draw."""

Derivation = Literal["named", "tutorial"]
"""How a seed becomes the roots of the streams.

``named``: the hash of the stream's name is folded into the seed's key.
``tutorial``: the literal key splitting of Flax's dropout tutorial, kept so that the printed program
can be reproduced. It splits the seed's key in three for `params` and `dropout`, and splits the same
key again in two for `shuffle`.
"""


@contextmanager
def fixed_settings() -> Generator[None]:
    """JAX's settings that change what is drawn are in this context, and this thread, as in runs.

    Whatever a program or its environment chose (``JAX_THREEFRY_PARTITIONABLE``,
    ``JAX_ENABLE_X64``, ``JAX_DEFAULT_PRNG_IMPL``), a seed means the same network.
    """
    with (
        jax.threefry_partitionable(True),
        jax.enable_x64(False),
        jax.default_prng_impl("threefry2x32"),
    ):
        yield


def stream_root(seed: int, stream: Stream, derivation: Derivation = "named") -> Key:
    """The root key of one stream.

    Args:
        seed: any integer in [0, 2**63).
        stream: the stream's name.
        derivation: how the seed becomes the root, see `Derivation`.

    Returns:
        A typed threefry key. Roots of different streams are unrelated.

    Raises:
        RequestError: the seed is outside its range.
    """
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed {seed}: must be at least 0 and below 2^63")
    # Named, so that the global jax_default_prng_impl cannot change what a seed means.
    root = jax.random.key(seed % 2**32, impl="threefry2x32")
    if seed >= 2**32:
        # JAX keeps 32 bits of a seed, unless it counts in 64: the others are folded in.
        root = jax.random.fold_in(root, seed >> 32)
    if derivation == "tutorial" and stream in ("params", "dropout"):
        _, params, dropout = jax.random.split(root, 3)
        return params if stream == "params" else dropout
    if derivation == "tutorial" and stream == "shuffle":
        return jax.random.split(root)[1]
    return jax.random.fold_in(root, _stable_hash(stream))


def key_for(
    seed: int, stream: Stream, index: int | jax.Array = 0, derivation: Derivation = "named"
) -> Key:
    """The key at the address (seed, stream, index).

    Args:
        seed: any integer in [0, 2**63).
        stream: the stream's name.
        index: the step (`dropout`, `augment`) or the epoch (`shuffle`), in [0, 2**32); an array
            gives an array of keys of that shape.
        derivation: how the seed becomes the stream's root.

    Returns:
        A typed threefry key, a pure function of the arguments.

    Raises:
        RequestError: as `stream_root`.
    """
    return keys_below(stream_root(seed, stream, derivation), jnp.asarray(index, jnp.uint32))


@jax.jit
def keys_below(root: Key, index: jax.Array) -> Key:
    """The keys at the addresses u32 [...] of one stream, by its root; one program for all seeds."""
    folded = jax.vmap(jax.random.fold_in, (None, 0))(root, index.reshape(-1))
    return folded.reshape(index.shape)


def permutation(key: Key, size: int) -> np.ndarray:
    """A uniformly random order of ``range(size)``, i32 [size], in host memory."""
    return np.asarray(jax.random.permutation(key, size), np.int32)


def a_few(size: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` of ``range(size)`` at random, i32 in their order; all where there are no more.

    For a look at some of many images: the first of data that are sorted by class are of one class.
    """
    if size <= count:
        return np.arange(size, dtype=np.int32)
    return np.sort(permutation(key_for(seed, "sample", 1), size)[:count])


def _stable_hash(name: str) -> int:
    """32 bits of a digest: unlike ``hash``, the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
