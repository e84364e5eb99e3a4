"""Evaluation on every example, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.types import Split, Variables
from thinned.data.batch import Batch
from thinned.engine.losses import cross_entropy
from thinned.engine.metrics import BatchSums, Totals, batch_sums, confusion_counts
from thinned.models.apply import BATCH_SIZE, logits_of, padded_batches


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on a set of labelled images.

    Attributes:
        totals: loss, correct answers and count, summed over all examples.
        confusion: int64 [true class, predicted class], counts.
    """

    totals: Totals
    confusion: np.ndarray

    @property
    def class_accuracy(self) -> np.ndarray:
        """f64 [class]: fraction of each class's examples classified correctly; NaN without any."""
        examples = self.confusion.sum(1)
        right = np.diagonal(self.confusion).astype(float)
        return np.divide(right, examples, out=np.full(len(right), np.nan), where=examples > 0)


@partial(jax.jit, static_argnames="apply_fn")
def eval_step(
    apply_fn: Callable[..., Any],
    variables: Variables,
    data: Batch,
    rows: jax.Array,
    mask: jax.Array,
) -> tuple[BatchSums, jax.Array]:
    """Sums and confusion counts of one batch, dropout off.

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        variables: its variables.
        data: the whole set, on the device.
        rows: i32 [batch], the examples of this batch.
        mask: bool [batch], False for padding.
    """
    labels = data.labels[rows]
    logits = logits_of(apply_fn, variables, data.images[rows])
    sums = batch_sums(cross_entropy(logits, labels), logits, labels, mask)
    return sums, confusion_counts(logits, labels, mask)


def evaluate(
    apply_fn: Callable[..., Any],
    variables: Variables,
    data: Batch | Split,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Evaluate on all of `data`: no example is dropped, counted twice or averaged per batch.

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        variables: its variables.
        data: images u8 [example, height, width, channel] and labels i32 [example], on the device;
            or a split, of which one batch at a time is brought there.
        batch_size: examples in one compiled call.
    """
    totals, counts = Totals(), 0
    size = len(data.labels)
    for rows, mask in padded_batches(size, min(batch_size, size)):
        part, places = data, rows
        if isinstance(data, Split):
            part = Batch(jnp.asarray(data.images[rows]), jnp.asarray(data.labels[rows]))
            places = np.arange(len(rows), dtype=np.int32)
        sums, cells = eval_step(apply_fn, variables, part, jnp.asarray(places), jnp.asarray(mask))
        totals, counts = totals.add(sums), counts + np.asarray(cells, np.int64)
    return Evaluation(totals, np.asarray(counts))
