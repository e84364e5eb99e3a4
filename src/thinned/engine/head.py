"""A linear classifier on fixed features, fitted to the end: where fine-tuning begins.

A head that is drawn pulls everything below it towards its own accidents in the first steps; one
that fits leaves the features as they are where they are good (Kumar et al. 2022, "Fine-tuning can
distort pretrained features and underperform out-of-distribution", section 3).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from thinned.engine.losses import cross_entropy
from thinned.engine.step import TrainState
from thinned.models.staged import HEAD

STRENGTH = 1.0
"""Inverse strength of the penalty, scikit-learn's ``C``."""
_STEPS = 500
_CLOSE = 1e-4


def fitted_head(
    features: np.ndarray, labels: np.ndarray, classes: int, strength: float = STRENGTH
) -> tuple[jax.Array, jax.Array]:
    """Multinomial logistic regression by L-BFGS, as scikit-learn's ``LogisticRegression``.

    Least is the mean cross-entropy plus half the sum of the squared weights (not of the biases)
    over ``strength * len(labels)``.

    Args:
        features: f32 [example, feature], finite.
        labels: i32 [example].
        classes: number of classes.
        strength: above 0; the larger, the freer the weights.

    Returns:
        Kernel f32 [feature, class] and bias f32 [class].
    """
    start = (jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
    penalty = jnp.float32(1 / (strength * len(labels)))
    return _fit(start, jnp.asarray(features), jnp.asarray(labels), penalty)


@jax.jit
def _fit(start: Any, features: jax.Array, labels: jax.Array, penalty: jax.Array) -> Any:
    solver = optax.lbfgs()

    def loss(weights: Any) -> jax.Array:
        kernel, bias = weights
        losses = cross_entropy(features @ kernel + bias, labels)
        return losses.mean() + 0.5 * penalty * jnp.square(kernel).sum()

    valued = optax.value_and_grad_from_state(loss)

    def going_on(held: Any) -> jax.Array:
        _, _, count, slope = held
        return (count < _STEPS) & (slope > _CLOSE)

    def step(held: Any) -> Any:
        weights, state, count, _ = held
        value, grads = valued(weights, state=state)
        updates, state = solver.update(
            grads, state, weights, value=value, grad=grads, value_fn=loss
        )
        slope = jnp.max(jnp.asarray([jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads)]))
        return optax.apply_updates(weights, updates), state, count + 1, slope

    held = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(going_on, step, held)[0]


def with_head(state: TrainState, head: tuple[jax.Array, jax.Array]) -> TrainState:
    """A state of a `Staged` network that trains its head, with another kernel and bias there."""
    kernel, bias = head
    # Buffers of its own: the state is donated.
    held = {**state.params[HEAD], "kernel": jnp.copy(kernel), "bias": jnp.copy(bias)}
    params = {**state.params, HEAD: held}
    if state.average is None:
        return state.replace(params=params)
    return state.replace(params=params, average=jax.tree.map(jnp.copy, params))
