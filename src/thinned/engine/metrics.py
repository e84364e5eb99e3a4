"""Metrics as (sums, count), merged by addition; nothing is averaged before the last moment."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class BatchSums(struct.PyTreeNode):
    """Sums over the examples of one batch, on the device.

    Attributes:
        loss: f32 [], nats summed over examples.
        correct: i32 [], examples whose largest logit is that of their label.
        count: i32 [], examples; padding is not counted.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def batch_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> BatchSums:
    """Sum one batch.

    Args:
        losses: f32 [batch], nats.
        logits: f32 [batch, class].
        labels: i32 [batch].
        mask: bool [batch], False for padding; None counts all.
    """
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    right = (jnp.argmax(logits, -1) == labels) & mask
    return BatchSums(
        loss=jnp.where(mask, losses, 0).sum(),
        correct=right.sum(dtype=jnp.int32),
        count=mask.sum(dtype=jnp.int32),
    )


@dataclass(frozen=True)
class Totals:
    """Sums over any number of batches, on the host, in double precision and exact integers."""

    loss: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, steps: BatchSums) -> Totals:
        """Add sums [step] in the order of the steps, so that any chunking gives the same bits."""
        loss = self.loss
        for value in np.asarray(steps.loss, np.float64).reshape(-1):
            loss += float(value)
        return Totals(
            loss,
            self.correct + int(np.sum(np.asarray(steps.correct))),
            self.count + int(np.sum(np.asarray(steps.count))),
        )

    @property
    def mean_loss(self) -> float:
        """Nats per example; NaN when nothing was counted."""
        return self.loss / self.count if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        """Fraction of examples classified correctly, 0 to 1; NaN when nothing was counted."""
        return self.correct / self.count if self.count else float("nan")
