"""Optimizers, with their numbers held as arrays so that one compiled step serves any value."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
import optax


@cache
def adam() -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015), with Optax's defaults and step size 0.001.

    The step size lives in the optimizer's state, see `with_learning_rate`. One object serves all
    runs: a compiled step is found again by it.
    """
    return optax.inject_hyperparams(optax.adam)(learning_rate=0.001)


def with_learning_rate(opt_state: Any, learning_rate: float) -> Any:
    """The state of an optimizer of this module, with another step size (above 0)."""
    numbers = {**opt_state.hyperparams, "learning_rate": jnp.float32(learning_rate)}
    return opt_state._replace(hyperparams=numbers)
