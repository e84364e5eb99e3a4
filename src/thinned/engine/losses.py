"""Losses per example: the mean over a batch is taken where the batch is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy, one value for each example.

    Args:
        logits: f32 [batch, class].
        labels: i32 [batch], in ``range(class)``; or f32 [batch, class], distributions.

    Returns:
        f32 [batch], in nats, at least 0.
    """
    # Through one-hot labels, as the tutorial: a gather's gradient is a scatter, slow on a CPU.
    return optax.softmax_cross_entropy(logits, distributions(labels, logits.shape[-1]))


def distributions(labels: jax.Array, classes: int) -> jax.Array:
    """Labels i32 [batch] as distributions f32 [batch, class]; distributions pass unchanged."""
    return jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels


def smoothed(labels: jax.Array, classes: int, amount: jax.Array) -> jax.Array:
    """Distributions f32 [batch, class] with a part spread evenly over all classes.

    Label smoothing, Szegedy et al. (2016), section 7.

    Args:
        labels: as for `cross_entropy`.
        classes: how many.
        amount: the part that is spread, f32 [], 0 to 1; may be traced.
    """
    return optax.smooth_labels(distributions(labels, classes), amount)


def disagreement(one: jax.Array, two: jax.Array) -> jax.Array:
    """Half the sum of both Kullback-Leibler divergences between two predictions.

    The second term of R-Drop (Liang et al. 2021, eq. 2). Training takes half the paper's loss, the
    mean of both cross-entropies and not their sum, so that learning rates mean what they did.

    Args:
        one, two: logits f32 [batch, class] of the same images under two masks.

    Returns:
        f32 [batch], in nats, at least 0.
    """
    first, second = jax.nn.log_softmax(one), jax.nn.log_softmax(two)
    return 0.5 * jnp.sum((jnp.exp(first) - jnp.exp(second)) * (first - second), -1)
