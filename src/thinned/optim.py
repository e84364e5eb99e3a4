"""Optimizers, with their numbers held as arrays so that one compiled step serves any value."""

from __future__ import annotations

import optax


def adam(learning_rate: float) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015), with Optax's defaults for everything but the step size.

    Args:
        learning_rate: step size, above 0. It lives in the optimizer state as an f32 array, so that
            runs that differ only in it share a compiled program.
    """
    return optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)
