"""Optimizers, with their numbers held as arrays so that one compiled step serves any value."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from thinned.errors import RequestError


@cache
def adam() -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015), with Optax's defaults and step size 0.001.

    The step size lives in the optimizer's state, see `with_learning_rate`. One object serves all
    runs: a compiled step is found again by it.
    """
    return optax.inject_hyperparams(optax.adam)(learning_rate=0.001)


def max_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Keep each unit's incoming weights inside a ball, as the last transform of a chain.

    Srivastava et al. (2014), section 5.1: after a step, weights whose norm exceeds the limit are
    projected back onto the ball. Arrays of fewer than two axes (biases, scales) are left alone;
    the last axis of the others counts the units, as in Flax.

    Args:
        limit: the greatest Euclidean norm, above 0; the paper uses 1 to 4.

    Raises:
        RequestError: `limit` is not above 0.
    """
    if not (limit > 0 and math.isfinite(limit)):
        raise RequestError(f"max_norm limit is {limit!r}: must be a number above 0")

    def projected(update: jax.Array, weights: jax.Array) -> jax.Array:
        if weights.ndim < 2:
            return update
        moved = weights + update
        axes = tuple(range(weights.ndim - 1))
        norms = jnp.sqrt(jnp.sum(jnp.square(moved), axes, keepdims=True))
        return moved * jnp.minimum(1.0, limit / jnp.maximum(norms, 1e-12)) - weights

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        if params is None:
            raise RequestError("max_norm needs the parameters: call update(grads, state, params)")
        return jax.tree.map(projected, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def with_learning_rate(opt_state: Any, learning_rate: float) -> Any:
    """The state of an optimizer of this module, with another step size (above 0)."""
    numbers = {**opt_state.hyperparams, "learning_rate": jnp.float32(learning_rate)}
    return opt_state._replace(hyperparams=numbers)
