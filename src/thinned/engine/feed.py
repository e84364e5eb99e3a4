"""What the loop feeds to the compiled steps: data that stay on the device, or that stream to it."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from thinned.core.config import Config
from thinned.core.errors import RequestError
from thinned.core.rng import fixed_settings
from thinned.core.types import Split
from thinned.data.batch import Batch, class_weights
from thinned.engine.layout import ONE_DEVICE, Layout
from thinned.engine.plan import CHUNK_STEPS, Plan
from thinned.engine.step import Chunk


class Feed(Protocol):
    """Gives the data and the chunk of any step of a plan, see `Plan.chunk`."""

    def fetch(self, step: int, wanted: int) -> tuple[Batch, Chunk, int]:
        """Data, chunk and number of steps, at most `wanted`, from `step` on."""
        ...


class Resident:
    """All training images on the device; a chunk picks its rows there."""

    def __init__(self, plan: Plan, data: Batch) -> None:
        self._plan, self._data = plan, data

    def fetch(self, step: int, wanted: int) -> tuple[Batch, Chunk, int]:
        """See `Feed.fetch`."""
        chunk, count = self._plan.chunk(step, wanted)
        return self._data, chunk, count


def steps_within(memory_bytes: float, batch_size: int, shape: tuple[int, ...]) -> int:
    """Steps whose images are read at a time, so that all buffers stay below half of the memory.

    Args:
        memory_bytes: half of it holds four buffers: two in host memory, two on the device.
        batch_size: images of a step.
        shape: of an image.

    Raises:
        RequestError: not even one step's images fit.
    """
    step_bytes = batch_size * int(np.prod(shape))
    room = int(memory_bytes / 8 / max(step_bytes, 1))
    if room < 1:
        raise RequestError(
            f"--data.memory-mb {memory_bytes / 1e6:g} is less than streaming takes: the buffers of "
            f"a step of {batch_size} images need {math.ceil(8 * step_bytes / 1e6)}"
        )
    # Long chunks pay: XLA allocates its working memory anew for each of them.
    return min(CHUNK_STEPS, room)


class Streamed:
    """Training images on the disk: each chunk's are read while the one before it is computed.

    Which images a step sees is the plan's to say, and so the same as if they were in memory,
    however often the run was stopped. A chunk always has room for the same number of steps, so
    that one program serves all.
    """

    def __init__(
        self,
        plan: Plan,
        split: Split,
        memory_bytes: float,
        weights: np.ndarray | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> None:
        """Prepare to stream.

        Args:
            plan: the course.
            split: the training images.
            memory_bytes: half of it bounds all buffers: two in host memory, two on the device.
            weights: f32 [example] or None, see `Batch`.
            layout: devices that share the images; this process reads those of its own.

        Raises:
            RequestError: see `steps_within`.
        """
        self._plan, self._split, self._weights = plan, split, weights
        self._layout = layout
        self._batch = plan.config.batch_size
        self.capacity = steps_within(memory_bytes, self._batch, split.images.shape[1:])
        # JAX's settings are each thread's own.
        self._pool = ThreadPoolExecutor(1, initializer=fixed_settings().__enter__)
        self._next: tuple[int, Future[tuple[Batch, Chunk, int]]] | None = None

    def fetch(self, step: int, wanted: int) -> tuple[Batch, Chunk, int]:
        """See `Feed.fetch`.

        Raises:
            ThinnedError: images have vanished or cannot be read.
        """
        wanted = min(wanted, self.capacity)
        # What was read ahead is taken, whatever number of steps is wanted by now.
        if self._next is not None and self._next[0] == step:
            data, chunk, count = self._next[1].result()
        else:
            data, chunk, count = self._read(step, wanted)
        count = min(count, wanted)
        after = step + count
        if after < self._plan.total_steps:
            self._next = after, self._pool.submit(self._read, after, wanted)
        return data, chunk, count

    def _read(self, step: int, wanted: int) -> tuple[Batch, Chunk, int]:
        chunk, count = self._plan.chunk(step, wanted)
        order = np.asarray(chunk.order)[:count]
        columns = self._layout.columns(self._batch)
        if columns is not None:
            return self._layout.streamed([self._part(order, own) for own in columns]), chunk, count
        full = self.capacity * self._batch
        rows = np.full(full, -1)
        rows[: order.size] = order.reshape(-1)
        places = np.arange(CHUNK_STEPS * self._batch, dtype=np.int32) % full
        chunk = chunk._replace(order=jax.device_put(places.reshape(CHUNK_STEPS, self._batch)))
        return jax.device_put(self._taken(rows)), chunk, count

    def _part(self, order: np.ndarray, places: np.ndarray) -> Batch:
        """The images at some places of each step, [step, place, ...]."""
        rows = np.full((self.capacity, len(places)), -1)
        rows[: len(order)] = np.where(places >= 0, order[:, places], -1)
        taken = self._taken(rows.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), taken)

    def _taken(self, rows: np.ndarray) -> Batch:
        """The images at `rows`, in host memory; zeros for -1."""
        there = np.flatnonzero(rows >= 0)
        # Sorted, so that the disk is read in one direction.
        order = there[np.argsort(rows[there], kind="stable")]
        images = np.zeros((len(rows), *self._split.images.shape[1:]), self._split.images.dtype)
        images[order] = self._split.images[rows[order]]
        labels = np.zeros(len(rows), np.int32)
        labels[there] = self._split.labels[rows[there]]
        weights = None
        if self._weights is not None:
            weights = np.zeros(len(rows), np.float32)
            weights[there] = self._weights[rows[there]]
        held: Any = images, labels, weights
        return Batch(*held)


def feed_of(
    plan: Plan, split: Split, data: Batch | Split | None = None, layout: Layout = ONE_DEVICE
) -> Feed:
    """The training images of a plan, on the device or streamed to it as the config wants.

    Args:
        plan: the course.
        split: the training images.
        data: the same where they are to be, see `placed`; found out when absent.
        layout: devices that share them.
    """
    data = placed(plan.config, split, layout) if data is None else data
    config = plan.config
    weights = class_weights(split.labels) if config.data.balance == "weights" else None
    if isinstance(data, Split):
        return Streamed(plan, split, config.data.memory_mb * 1e6, weights, layout)
    weighted = data if weights is None else data._replace(weights=layout.everywhere(weights))
    return Resident(plan, weighted)


def placed(config: Config, split: Split, layout: Layout = ONE_DEVICE) -> Batch | Split:
    """A split on the device or devices, or still on the disk where it does not fit."""
    if not fits_in_memory(config, split):
        return split
    images = split.images
    held = images if isinstance(images, np.ndarray) else images[np.arange(len(images))]
    return Batch(*layout.everywhere((held, split.labels)))


def refuse_narrow(config: Config, split: Split) -> None:
    """Refuse, before anything is written, to stream through less memory than a step takes."""
    if not fits_in_memory(config, split):
        steps_within(config.data.memory_mb * 1e6, config.batch_size, split.images.shape[1:])


def fits_in_memory(config: Config, split: Split) -> bool:
    """Whether a split is to be held on the device as a whole."""
    wanted = config.data.in_memory
    return wanted == "yes" or (
        wanted == "auto" and split.images.nbytes <= config.data.memory_mb * 1e6
    )
