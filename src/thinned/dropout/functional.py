"""The mathematics of dropout, as pure functions of (inputs, rate, key)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from thinned.dropout.bits import keep_mask, realised_keep
from thinned.errors import RequestError
from thinned.types import Bits, Key

Rate = Any
"""A drop probability: a Python number, or an f32 [] that may be traced."""


def dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Drop elements independently and scale the survivors up, so that the mean is kept.

    Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, section 4, in the inverted form: nothing is to be done at inference.

    Args:
        x: float array of any shape (f32, bf16, f16).
        rate: probability of dropping, 0 to 1 inclusive; may be traced. Exact identity at 0, exact
            zeros with a zero gradient at 1. A plain number 0 draws no random bits.
        key: used once; unused when `rate` is the plain number 0 or 1.
        bits: generator, see `thinned.dropout.bits`. ``threefry`` gives the masks of
            ``jax.random.bernoulli(key, 1 - rate)``, and so those of ``flax.linen.Dropout``.
        broadcast_dims: axes along which one draw is shared.

    Returns:
        An array like `x`. Survivors are divided by the probability with which `bits` really keeps,
        which differs from ``1 - rate`` by at most 2**-23. Nothing of the mask is kept for the
        backward pass: it is drawn again. The gradient with respect to `rate` is zero.

    Raises:
        RequestError: `x` is no float array, `rate` is out of range, or an axis does not exist.
    """
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise RequestError(f"dropout needs a float array, not {jnp.result_type(x)}")
    rate = checked_rate(rate)
    shape = mask_shape(jnp.shape(x), broadcast_dims)
    if isinstance(rate, float) and rate in (0.0, 1.0):
        return x if rate == 0.0 else jnp.zeros_like(x)
    keep = rate if isinstance(rate, float) else None
    return _masked(x, jnp.asarray(rate, jnp.float32), key, shape, bits, keep)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3, 4, 5))
def _masked(
    x: jax.Array,
    rate: jax.Array,
    key: Key,
    shape: tuple[int, ...],
    bits: Bits,
    plain: float | None,
) -> jax.Array:
    # Rematerialised, so that the backward pass holds on to the key and not to the mask. A plain
    # number is kept beside the array: its complement is taken in double precision, as in Flax.
    chance = jax.lax.stop_gradient(rate) if plain is None else plain
    keep = realised_keep(chance, bits)
    scale = jnp.where(keep > 0, 1.0 / jnp.maximum(keep, jnp.float32(2.0**-33)), 0.0)
    mask = keep_mask(key, shape, chance, bits)
    return jnp.where(mask, x * scale.astype(x.dtype), jnp.zeros((), x.dtype))


def checked_rate(rate: Rate) -> Rate:
    """A plain number as a float in [0, 1]; an array (traced or not) as it is.

    Raises:
        RequestError: a plain number, or an array whose value is known, out of range or NaN; or
            something that is no single number.
    """
    if isinstance(rate, bool | str) or np.shape(rate) != ():
        raise RequestError(f"rate is {rate!r}: must be one number from 0 to 1")
    if isinstance(rate, Tracer):
        return rate
    value = float(rate)
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise RequestError(f"rate is {value}: must be a number from 0 to 1")
    return value if isinstance(rate, int | float) else rate


def mask_shape(shape: tuple[int, ...], broadcast_dims: Sequence[int]) -> tuple[int, ...]:
    """`shape` with 1 at each of `broadcast_dims` (which may count from the end).

    Raises:
        RequestError: an axis does not exist.
    """
    for axis in broadcast_dims:
        if not -len(shape) <= axis < len(shape):
            raise RequestError(f"broadcast_dims has axis {axis}, but inputs have {len(shape)} axes")
    shared = {axis % len(shape) for axis in broadcast_dims}
    return tuple(1 if axis in shared else size for axis, size in enumerate(shape))
