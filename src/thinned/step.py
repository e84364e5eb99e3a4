"""The training step: one pure function, and a compiled loop over many of them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thinned.dropout.layers import LOSSES
from thinned.losses import cross_entropy
from thinned.metrics import BatchSums, batch_sums
from thinned.state import TrainState
from thinned.types import Key, Variables


class Batch(NamedTuple):
    """Images u8 [batch, height, width, channel] (or f32 in [0, 1]) and labels i32 [batch]."""

    images: jax.Array
    labels: jax.Array


class Chunk(NamedTuple):
    """What several steps in a row use, one entry a step; all of it computed from addresses.

    Attributes:
        order: i32 [step, batch], rows of the training set.
        keys: keys [step] of the stream `dropout`.
        rates: the collection ``rates`` of the model, each leaf f32 [step].
    """

    order: jax.Array
    keys: Key
    rates: Variables


def as_float(images: jax.Array) -> jax.Array:
    """u8 images as f32 in [0, 1]; floats pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images


def train_step(
    state: TrainState, batch: Batch, rates: Variables, key: Key
) -> tuple[TrainState, BatchSums]:
    """One step of gradient descent on the mean loss of a batch.

    To that loss is added whatever layers sow into the collection ``losses`` (a learned rate's
    regulariser); the sums that are returned hold the cross-entropy alone.

    Args:
        state: the state before the step. ``state.apply_fn`` is called as
            ``apply_fn(variables, images, train=True, rngs={"dropout": key}, mutable=[...])``.
        batch: the examples.
        rates: drop probabilities, as the variable collection ``rates`` (see
            `thinned.dropout.sites.rates_collection`); f32 [], may be traced; empty means each
            layer's own.
        key: the dropout key of this step, see `thinned.key_for`.

    Returns:
        The state after the step, and the sums of the batch as the network saw it, masks included.
    """

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, **state.model_state, **({"rates": rates} if rates else {})}
        logits, updates = state.apply_fn(
            variables,
            as_float(batch.images),
            train=True,
            rngs={"dropout": key},
            mutable=[*state.model_state, LOSSES],
        )
        losses = cross_entropy(logits, batch.labels)
        terms = jax.tree.leaves(updates.get(LOSSES, {}))
        return losses.mean() + sum(terms), (losses, logits, updates)

    grads, (losses, logits, updates) = jax.grad(loss_of, has_aux=True)(state.params)
    updated = {name: updates[name] for name in state.model_state}
    state = state.apply_gradients(grads=grads, model_state=updated)
    return state, batch_sums(losses, logits, batch.labels)


@partial(jax.jit, donate_argnames="state")
def train_steps(
    state: TrainState, data: Batch, chunk: Chunk, count: jax.Array
) -> tuple[TrainState, BatchSums]:
    """The first `count` steps of a chunk as one compiled call.

    The number of steps is traced, so one program serves any number: a run that is stopped in
    mid-chunk repeats the very same machine code when it goes on, and so the very same bits.

    Args:
        state: donated: its buffers are reused, do not touch it afterwards.
        data: the whole training set, on the device.
        chunk: orders, keys and rates, padded to a fixed number of steps.
        count: i32 [], at most the number of steps in `chunk`.

    Returns:
        The state after `count` steps, and sums with a leading axis [step], zero beyond `count`.
    """
    steps = chunk.order.shape[0]
    empty = BatchSums(
        loss=jnp.zeros(steps, jnp.float32),
        correct=jnp.zeros(steps, jnp.int32),
        count=jnp.zeros(steps, jnp.int32),
    )

    def body(index: jax.Array, carry: tuple[TrainState, BatchSums]) -> tuple[TrainState, BatchSums]:
        state, sums = carry
        order, key, rates = jax.tree.map(lambda leaf: leaf[index], chunk)
        batch = Batch(data.images[order], data.labels[order])
        state, step_sums = train_step(state, batch, rates, key)
        return state, jax.tree.map(lambda total, one: total.at[index].set(one), sums, step_sums)

    return jax.lax.fori_loop(0, count, body, (state, empty))
