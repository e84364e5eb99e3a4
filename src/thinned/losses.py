"""Losses per example: the mean over a batch is taken where the batch is known."""

from __future__ import annotations

import jax
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
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, labels)
