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
from thinned.engine.metrics import BatchSums, Totals, batch_sums
from thinned.models.apply import BATCH_SIZE, logits_of, padded_batches


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on a set of labelled images.

    Attributes:
        totals: loss, correct answers and count, summed over all examples.
        labels: i32 [example].
        predicted: i32 [example], the class of the largest logit; ties go to the lower class.
        classes: how many classes there are.
    """

    totals: Totals
    labels: np.ndarray
    predicted: np.ndarray
    classes: int

    @property
    def confusion(self) -> np.ndarray:
        """Counts i64 [true class, predicted class], made anew: large where there are many."""
        cells = self.labels.astype(np.int64) * self.classes + self.predicted
        return np.bincount(cells, minlength=self.classes**2).reshape(self.classes, -1)

    @property
    def class_accuracy(self) -> np.ndarray:
        """f64 [class]: fraction of each class's examples classified correctly; NaN without any."""
        right = np.bincount(self.labels, self.labels == self.predicted, self.classes)
        examples = np.bincount(self.labels, minlength=self.classes)
        return np.divide(right, examples, out=np.full(self.classes, np.nan), where=examples > 0)


@partial(jax.jit, static_argnames="apply_fn")
def eval_step(
    apply_fn: Callable[..., Any],
    variables: Variables,
    data: Batch,
    rows: jax.Array,
    mask: jax.Array,
) -> tuple[BatchSums, jax.Array, int]:
    """Sums, predicted classes i32 [batch], and the number of classes; dropout off.

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
    return sums, jnp.argmax(logits, -1).astype(jnp.int32), logits.shape[-1]


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
    totals, found, classes = Totals(), list[np.ndarray](), 0
    size = len(data.labels)
    for rows, mask in padded_batches(size, min(batch_size, size)):
        part, places = data, rows
        if isinstance(data, Split):
            part = Batch(*jax.device_put((data.images[rows], data.labels[rows])))
            places = np.arange(len(rows), dtype=np.int32)
        places, kept = jax.device_put((places, mask))
        sums, predicted, classes = eval_step(apply_fn, variables, part, places, kept)
        totals = totals.add(sums)
        found.append(np.asarray(predicted)[mask])
    # Counts for each pair of classes would take more memory than all else, where there are many.
    return Evaluation(totals, np.asarray(data.labels), np.concatenate(found), int(classes))
