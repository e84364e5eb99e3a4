"""The shapes of masks: which elements share a draw, and which blocks a draw takes away."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from thinned.core.errors import RequestError

_NEWTON_STEPS = 40


def mask_shape(shape: tuple[int, ...], broadcast_dims: Iterable[int]) -> tuple[int, ...]:
    """`shape` with 1 at each of `broadcast_dims` (which may count from the end).

    Raises:
        RequestError: an axis does not exist, or is no whole number.
    """
    try:
        axes = [operator.index(axis) for axis in broadcast_dims]
    except TypeError as error:
        raise RequestError(
            f"broadcast_dims is {broadcast_dims!r}: must be a list of axes"
        ) from error
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            raise RequestError(f"broadcast_dims has axis {axis}, but inputs have {len(shape)} axes")
    shared = {axis % len(shape) for axis in axes}
    return tuple(1 if axis in shared else size for axis, size in enumerate(shape))


def spatial_axes(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """The axes between batch and channel.

    Raises:
        RequestError: there are none: `shape` is not [batch, ..., channel] with a map in between.
    """
    if len(shape) < 3:
        raise RequestError(
            f"{kind} dropout needs [batch, height, width, channel], not {len(shape)} axes"
        )
    return tuple(range(1, len(shape) - 1))


def inner_axes(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """All axes but the batch's.

    Raises:
        RequestError: there is no batch axis.
    """
    if not shape:
        raise RequestError(f"{kind} dropout needs [batch, ...], not a scalar")
    return tuple(range(1, len(shape)))


def block_sizes(shape: tuple[int, ...], block_size: int) -> tuple[int, ...]:
    """Sides of a block on a map [batch, ..., channel]: `block_size`, or the map's where smaller."""
    return tuple(min(block_size, shape[axis]) for axis in spatial_axes(shape, "block"))


def seed_shape(shape: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the seeds: one for each first corner of a block that lies inside the map."""
    inner = (size - side + 1 for size, side in zip(shape[1:-1], blocks, strict=True))
    return (shape[0], *inner, shape[-1])


def grown(seeds: jax.Array, blocks: tuple[int, ...]) -> jax.Array:
    """The union of the blocks whose first corners are `seeds`.

    Args:
        seeds: bool, of the shape `seed_shape` gives.
        blocks: sides of a block.

    Returns:
        bool [batch, ..., channel] of the map: True where any block lies.
    """
    for axis, side in enumerate(blocks, start=1):
        margin = [(0, 0)] * seeds.ndim
        margin[axis] = (side - 1, side - 1)
        window = tuple(side if other == axis else 1 for other in range(seeds.ndim))
        seeds = lax.reduce_window(
            jnp.pad(seeds, margin), False, lax.bitwise_or, window, (1,) * seeds.ndim, "VALID"
        )
    return seeds


def seed_rate(rate: jax.Array, shape: tuple[int, ...], blocks: tuple[int, ...]) -> jax.Array:
    """The seeds' probability at which the fraction `rate` of a map is dropped, on average.

    A position survives when none of the blocks that could cover it was drawn. Ghiasi et al. (2018,
    eq. 1) approximate this to first order, as if blocks never overlapped and borders were covered
    as often as the middle; at a rate of 0.5 a map then loses far less than asked for. Here the
    equation ``mean over positions of (1 - p) ** covers == 1 - rate`` is solved, by Newton's method.

    Args:
        rate: f32 [], fraction of elements to drop, 0 to 1; may be traced.
        shape: of the map, [batch, ..., channel].
        blocks: sides of a block.

    Returns:
        f32 [], 0 at rate 0, 1 at rate 1.
    """
    covers, weights = (jnp.asarray(each, jnp.float32) for each in _covers(shape[1:-1], blocks))
    return _solved(jnp.asarray(rate), covers, weights)


@jax.jit
def _solved(rate: jax.Array, covers: jax.Array, weights: jax.Array) -> jax.Array:
    keep = 1.0 - rate

    # In t = -log(1 - p) the mean is convex and falling, and the start lies left of the root:
    # every Newton step goes right and none goes too far.
    def step(_: int, t: jax.Array) -> jax.Array:
        alive = weights * jnp.exp(-covers * t)
        return t + jnp.maximum(alive.sum() - keep, 0.0) / (covers * alive).sum()

    t = lax.fori_loop(0, _NEWTON_STEPS, step, rate / (covers * weights).sum())
    # Weights that add up to a little more than 1 would leave a trace of seeds at rate 0.
    return jnp.where(rate > 0, jnp.where(keep > 0, -jnp.expm1(-t), 1.0), 0.0)


@cache
def _covers(
    sizes: tuple[int, ...], blocks: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How many blocks can cover a position, and which fraction of the positions is so covered."""
    axes = [
        np.minimum.reduce(
            [
                np.arange(1, size + 1),
                np.arange(size, 0, -1),
                np.full(size, side),
                np.full(size, size - side + 1),
            ]
        )
        for size, side in zip(sizes, blocks, strict=True)
    ]
    counted = [np.unique(axis, return_counts=True) for axis in axes]
    totals: dict[int, int] = {}
    for combination in itertools.product(*(zip(*pair, strict=True) for pair in counted)):
        cover = math.prod(int(value) for value, _ in combination)
        totals[cover] = totals.get(cover, 0) + math.prod(int(count) for _, count in combination)
    everything = sum(totals.values())
    return tuple(totals), tuple(count / everything for count in totals.values())
