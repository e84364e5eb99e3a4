"""The one place where a key becomes random bits.

Both generators are counter-based: the word at a position is a function of the key and of that
position alone, so that a mask can be drawn in any order, in parts, on many devices, and again in
the backward pass. Evidence for `fast`, and what it is not good for: docs/dropout.md.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from thinned.core.errors import RequestError
from thinned.core.types import Bits, Key

GENERATORS: tuple[Bits, ...] = ("threefry", "fast")
_WORDS = jnp.uint32
_SETTINGS: Any = jax.config
_THREEFRY = "threefry2x32"


def random_bits(key: Key, shape: tuple[int, ...], bits: Bits = "threefry") -> jax.Array:
    """Uniformly random words.

    Args:
        key: a typed key [], or a legacy key u32 [2] (u32 [4] where JAX's default is ``rbg``).
        shape: of the result; sizes above 2**32, or symbolic ones, are addressed with 64 bits.
        bits: ``threefry`` gives the words of ``jax.random.bits(key, shape, jnp.uint32)`` (Salmon et
            al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whatever JAX's settings,
            written so that XLA fuses it on a CPU.
            ``fast`` is a mix hash of three multiplications, keyed by threefry; for masks only.

    Returns:
        u32 of `shape`, a pure function of the arguments; `jax.vmap` over keys gives each key's own.

    Raises:
        RequestError: `key` is no key, or `bits` no generator.
    """
    if bits not in GENERATORS:
        raise RequestError(f"bits is {bits!r}: choose from {', '.join(GENERATORS)}")
    words = _key_words(key)
    ours = jax.default_backend() == "cpu" and _SETTINGS.jax_threefry_partitionable
    if words is None or (bits == "threefry" and not ours):
        if bits == "threefry":
            # Accelerators fuse JAX's own; keys of another kind (rbg) keep their own bits, and so
            # does JAX's older order of them.
            return jax.random.bits(key, shape, jnp.uint32)
        words = jax.random.bits(key, (2,), jnp.uint32)
    high, low = counters(shape)
    if bits == "threefry":
        one, two = _threefry2x32(words, high, low)
        return one ^ two
    return _mix(words, high, low)


def keep_mask(
    key: Key, shape: tuple[int, ...], rate: jax.Array | float, bits: Bits = "threefry"
) -> jax.Array:
    """Which elements are kept: each independently, with probability 1 - `rate`.

    Args:
        key: as for `random_bits`.
        shape: of the mask.
        rate: f32 [], probability of dropping, 0 to 1 inclusive; may be traced.
        bits: as for `random_bits`. ``threefry`` gives the very mask of
            ``jax.random.bernoulli(key, 1 - rate, shape)``.

    Returns:
        bool of `shape`, True where kept; all True at rate 0, all False at rate 1.
    """
    if _is_double(rate, bits):
        return jax.random.bernoulli(key, 1.0 - rate, shape)
    words = random_bits(key, shape, bits)
    if bits == "threefry":
        # JAX's own uniform: 23 bits as the mantissa of a float in [1, 2).
        unit = lax.bitcast_convert_type((words >> 9) | _WORDS(0x3F800000), jnp.float32) - 1.0
        return unit < _keep(rate)
    return (words >= _threshold(rate)) & (jnp.asarray(rate, jnp.float32) < 1.0)


def realised_keep(rate: jax.Array | float, bits: Bits = "threefry") -> jax.Array:
    """The exact probability with which `keep_mask` keeps, f32 [].

    ``threefry`` compares 23 bits, as JAX does, so that rates are rounded to 2**-23; ``fast``
    compares all 32. Survivors are divided by this, not by ``1 - rate``, so that the mean is kept.
    """
    if bits == "threefry" and not _is_double(rate, bits):
        return jnp.ceil(_keep(rate) * 2.0**23) * jnp.float32(2.0**-23)
    return 1.0 - jnp.asarray(rate, jnp.float32)


def checked_key(key: Any) -> None:
    """Refuse what is no single key.

    Raises:
        RequestError: `key` is no typed key [] and no legacy key of JAX's default kind.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    words = 2 if _default_kind() == _THREEFRY else 4
    expected = f"a key is expected (jax.random.key, or u32 [{words}])"
    if dtype is None or shape is None:
        raise RequestError(f"{expected}, not {key!r}")
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape:
            raise RequestError(f"one key is expected, not an array {shape}: vmap over them")
    elif dtype != jnp.uint32 or shape != (words,):
        raise RequestError(f"{expected}, not {dtype} {shape}")


def uniform(key: Key, shape: tuple[int, ...], bits: Bits = "threefry") -> jax.Array:
    """Uniform numbers f32 of `shape` strictly between 0 and 1: the middles of 2**23 intervals."""
    middles = (random_bits(key, shape, bits) >> 9).astype(jnp.float32) + 0.5
    return middles * jnp.float32(2.0**-23)


def normal(key: Key, shape: tuple[int, ...], bits: Bits = "threefry") -> jax.Array:
    """Standard normal numbers f32 of `shape`, by the inverse of the distribution function.

    ``threefry`` gives those of ``jax.random.normal(key, shape, jnp.float32)``.
    """
    words = (random_bits(key, shape, bits) >> 9) | _WORDS(0x3F800000)
    low = np.nextafter(np.float32(-1), np.float32(0))
    wide = (lax.bitcast_convert_type(words, jnp.float32) - 1.0) * (1 - low) + low
    return jnp.float32(np.sqrt(2)) * lax.erf_inv(jnp.maximum(low, wide))


def counters(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The position of each element in row-major order, as u32 words (high, low) of `shape`.

    Made of one iota for each axis, not of a flat one reshaped, so that a sharded array's counters
    are made where its shards are.
    """
    axes = [lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    zero = jnp.zeros(shape, jnp.uint32)
    return linear_position(axes, shape) if axes else (zero, zero)


def linear_position(axes: list[jax.Array], shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Row-major position of the element at the coordinates `axes` (u32) of an array of `shape`.

    Returns:
        u32 words (high, low) of the 64-bit position.
    """
    # A symbolic size, as of a batch in `jax.export`, may be any.
    sizes: tuple[Any, ...] = shape
    if all(isinstance(size, int) for size in sizes) and math.prod(shape) <= 2**32:
        low = axes[-1]
        for axis in range(len(shape) - 1):
            low = low + axes[axis] * _WORDS(math.prod(shape[axis + 1 :]) % 2**32)
        return jnp.zeros_like(low), low
    high, low = jnp.zeros_like(axes[0]), axes[0]
    for coordinate, extent in zip(axes[1:], shape[1:], strict=True):
        size = _WORDS(extent)
        high, low = high * size + _high_product(low, size), low * size
        low = low + coordinate
        high = high + (low < coordinate).astype(jnp.uint32)
    return high, low


def _high_product(word: jax.Array, factor: jax.Array) -> jax.Array:
    """The high 32 bits of a 64-bit product, by halves: XLA has no such instruction for u32."""
    top, bottom = word >> 16, word & _WORDS(0xFFFF)
    upper, lower = factor >> 16, factor & _WORDS(0xFFFF)
    middle = top * lower + ((bottom * lower) >> 16)
    carried = bottom * upper + (middle & _WORDS(0xFFFF))
    return top * upper + (middle >> 16) + (carried >> 16)


def _key_words(key: Key) -> jax.Array | None:
    """u32 [2] of a threefry key; None for a key of another kind."""
    checked_key(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(key) if str(jax.random.key_impl(key)) == _THREEFRY else None
    return key if _default_kind() == _THREEFRY else None


def _default_kind() -> str:
    return _SETTINGS.jax_default_prng_impl


@jax.jit
def _threefry2x32(words: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds, unrolled: XLA cannot fuse JAX's rolled loop on a CPU.

    A hundred small steps, which every transformation would go through one by one; as a function of
    its own they are traced once, and XLA puts them back where they are called.
    """
    first, second = words[0], words[1]
    schedule = (first, second, first ^ second ^ _WORDS(0x1BD11BDA))
    x, y = high + first, low + second
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = ((y << turn) | (y >> (32 - turn))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + _WORDS(group + 1)
    return x, y


def _mix(words: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """A 32-bit mix hash (constants of Wellons' triple32, 2018) of the position, keyed in between.

    Threefry first stretches the key to independent words, so that every bit of it changes each of
    them. They enter by XOR on both sides of a multiplication: a key that was only added would shift
    one and the same sequence, one that made the multiplier could make it even, or zero.
    """
    tag = _WORDS(0xFFFFFFFF)
    before, between = _threefry2x32(words, tag, _WORDS(0))
    after, _ = _threefry2x32(words, tag, _WORDS(1))
    x = low ^ before
    x = (x ^ (x >> 17)) * _WORDS(0xED5AD4BB)
    x = x ^ (x >> 11) ^ between ^ (high * _WORDS(0x9E3779B1))
    x = x * _WORDS(0xAC4C1B51)
    x = x ^ (x >> 15) ^ after
    x = x * _WORDS(0x31848BAB)
    return x ^ (x >> 14)


def _is_double(rate: jax.Array | float, bits: Bits) -> bool:
    """Whether JAX would compare numbers of 64 bits, of which ours have nothing."""
    plain = isinstance(rate, int | float)
    return plain and bits == "threefry" and bool(_SETTINGS.jax_enable_x64)


def _keep(rate: jax.Array | float) -> jax.Array:
    # A plain number is subtracted in double precision, as Flax does before it draws.
    if isinstance(rate, int | float):
        return jnp.float32(1.0 - rate)
    return 1.0 - jnp.asarray(rate, jnp.float32)


def _threshold(rate: jax.Array | float) -> jax.Array:
    """Words below this are dropped: `rate` in units of 2**-32; unused at rate 1."""
    scaled = jnp.asarray(rate, jnp.float32) * jnp.float32(2.0**32)
    # The largest f32 below 2**32, beyond which the conversion is undefined.
    return jnp.minimum(scaled, jnp.float32(2.0**32 - 256)).astype(jnp.uint32)
