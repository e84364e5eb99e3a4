"""Training steps that end with the same bits on any number of devices and processes.

A batch is cut into cells, the same on every layout. Each device runs one program of the same shapes
and goes through the cells that are its own; what they give is gathered, which only moves data; then
every device adds it in the order of the cells and updates. Loops whose lengths are traced keep XLA
from compiling one part together with another, which it would do differently for each layout (as
EasyScale, Li et al. 2023, fixes the order of workers' gradients in PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from thinned.core.types import Variables
from thinned.data.augment import Augment
from thinned.data.batch import Batch
from thinned.engine.metrics import BatchSums
from thinned.engine.step import AXIS, Chunk, TrainState, gradients, statistics, updated, varied

CELLS = 8
"""Cells of a batch, where that many divide it; more devices than cells cannot share a batch."""


def cells_of(batch_size: int) -> int:
    """Into how many cells a batch is cut: the most, up to `CELLS`, of equal size."""
    return max(count for count in range(1, CELLS + 1) if batch_size % count == 0)


def spans(cells: int, devices: int) -> np.ndarray:
    """First and last cell (not included) of each device, i32 [device, 2]."""
    edges = np.minimum(np.arange(devices + 1) * _share(cells, devices), cells)
    return np.stack([edges[:-1], edges[1:]], 1).astype(np.int32)


def _share(cells: int, devices: int) -> int:
    return -(-cells // devices)


@partial(jax.jit, donate_argnames="state", static_argnames=("augment", "mesh"))
def exact_steps(
    state: TrainState,
    data: Batch,
    chunk: Chunk,
    own: jax.Array,
    count: jax.Array,
    once: jax.Array,
    augment: Augment | None,
    mesh: Mesh,
) -> tuple[TrainState, BatchSums]:
    """The first `count` steps of a chunk, see `thinned.engine.step.train_steps`.

    Batch normalisation sees one cell at a time (ghost batch norm, Hoffer et al. 2017), images are
    mixed within theirs, and masks come from ``fold_in(key, cell)``.

    Args:
        state, chunk, count, augment: as for `train_steps`, on all devices.
        data: the training set, on all devices; or of each device the images of its own cells,
            [device, step, its images, ...].
        own: i32 [device, 2], see `spans`.
        once: i32 [], 1: as a number that XLA does not know.
        mesh: the devices.
    """

    def local(
        state: TrainState,
        data: Batch,
        chunk: Chunk,
        own: jax.Array,
        count: jax.Array,
        once: jax.Array,
    ) -> tuple[TrainState, BatchSums]:
        steps, size = chunk.order.shape
        cells = cells_of(size)
        empty = BatchSums(
            loss=jnp.zeros(steps, jnp.float32),
            correct=jnp.zeros(steps, jnp.int32),
            count=jnp.zeros(steps, jnp.int32),
        )

        def body(
            index: jax.Array, carry: tuple[TrainState, BatchSums]
        ) -> tuple[TrainState, BatchSums]:
            state, sums = carry
            step = jax.tree.map(lambda leaf: leaf[index], chunk)

            def cell(number: jax.Array) -> Any:
                batch = _cell(number, index, data, step, own, augment)
                key = jax.random.fold_in(step.keys, number)
                return gradients(state, batch, step.rates, key, step.numbers)

            found = _gathered(cell, own[0], cells, mesh.size)

            def end(
                _: jax.Array, carry: tuple[TrainState, BatchSums]
            ) -> tuple[TrainState, BatchSums]:
                state, sums = carry
                grads, model_state, parts = found
                grads, model_state = jax.tree.map(_mean, (grads, model_state))
                total = jax.tree.map(_sum, parts)
                sums = jax.tree.map(lambda all, one: all.at[index].set(one), sums, total)
                return updated(state, grads, model_state, step.numbers), sums

            return jax.lax.fori_loop(0, once, end, (state, sums))

        return jax.lax.fori_loop(0, count, body, (state, empty))

    shared = _on_mesh(local, mesh, (P(), _place(data), P(), P(AXIS), P(), P()))
    return shared(state, data, chunk, own, count, once)


@partial(jax.jit, static_argnames=("augment", "mesh"))
def exact_collect(
    state: TrainState,
    data: Batch,
    chunk: Chunk,
    own: jax.Array,
    seen: jax.Array,
    count: jax.Array,
    once: jax.Array,
    augment: Augment | None,
    mesh: Mesh,
) -> Variables:
    """Go on collecting batch statistics, see `thinned.engine.step.collect`, cell by cell.

    Args:
        state, seen: as for `collect`, on all devices.
        data, chunk, own, count, once, augment, mesh: as for `exact_steps`.
    """

    def local(
        state: TrainState,
        data: Batch,
        chunk: Chunk,
        own: jax.Array,
        seen: jax.Array,
        count: jax.Array,
        once: jax.Array,
    ) -> Variables:
        cells = cells_of(chunk.order.shape[1])

        def body(index: jax.Array, collected: Variables) -> Variables:
            step = jax.tree.map(lambda leaf: leaf[index], chunk)

            def cell(number: jax.Array) -> Variables:
                batch = _cell(number, index, data, step, own, augment)
                keyed = step._replace(keys=jax.random.fold_in(step.keys, number))
                return statistics(state, collected, batch, keyed, seen + index)

            found = _gathered(cell, own[0], cells, mesh.size)
            return jax.lax.fori_loop(0, once, lambda _, __: jax.tree.map(_mean, found), collected)

        return jax.lax.fori_loop(0, count, body, state.average_state)

    shared = _on_mesh(local, mesh, (P(), _place(data), P(), P(AXIS), P(), P(), P()))
    return shared(state, data, chunk, own, seen, count, once)


def _on_mesh(local: Callable[..., Any], mesh: Mesh, places: tuple[P, ...]) -> Callable[..., Any]:
    # What is the same on all devices is so by the order of the sums, which JAX cannot know.
    return jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=P(), check_vma=False)


def _place(data: Batch) -> P:
    return P() if data.labels.ndim == 1 else P(AXIS)


def _cell(
    number: jax.Array,
    index: jax.Array,
    data: Batch,
    step: Chunk,
    own: jax.Array,
    augment: Augment | None,
) -> Batch:
    """The images of one cell of a step, varied."""
    batch = step.order.shape[0]
    size = batch // cells_of(batch)
    if data.labels.ndim == 1:
        rows = jax.lax.dynamic_slice_in_dim(step.order, number * size, size)
        images = jax.tree.map(lambda leaf: leaf[rows], data)
    else:
        first = (number - own[0, 0]) * size
        images = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf[0, index], first, size), data
        )
    return varied(images, step, augment, number * size)


def _gathered(work: Callable[[jax.Array], Any], own: jax.Array, cells: int, devices: int) -> Any:
    """What `work` makes of each cell, each leaf [cell, ...], on all devices."""
    like = jax.eval_shape(work, jax.ShapeDtypeStruct((), jnp.int32))
    slots = jax.tree.map(lambda leaf: jnp.zeros((cells, *leaf.shape), leaf.dtype), like)

    def body(number: jax.Array, slots: Any) -> Any:
        return jax.tree.map(lambda slot, one: slot.at[number].set(one), slots, work(number))

    slots = jax.lax.fori_loop(own[0], own[1], body, slots)
    share = _share(cells, devices)
    numbers = np.arange(cells)
    # The last devices' parts begin earlier where the cells end before.
    places = numbers + np.maximum(numbers // share * share - (cells - share), 0)

    def gathered(slot: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(slot, own[0], share)
        return jax.lax.all_gather(part, AXIS, tiled=True)[places]

    return jax.tree.map(gathered, slots)


def _sum(parts: jax.Array) -> jax.Array:
    """The sum of [cell, ...], in their order."""
    return reduce(jnp.add, list(parts))


def _mean(parts: jax.Array) -> jax.Array:
    """The mean of [cell, ...]; of counters and the like, which are no numbers to average, one."""
    if not jnp.issubdtype(parts.dtype, jnp.floating):
        return parts[0]
    return _sum(parts) * (1 / len(parts))
