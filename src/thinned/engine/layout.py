"""How a run lies on devices: on one, or shared between several, of one process or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from typing_extensions import override

from thinned.core.config import Config
from thinned.core.errors import RequestError
from thinned.core.types import Split, Variables
from thinned.data.augment import Augment
from thinned.data.batch import Batch
from thinned.engine.evaluation import Evaluation, eval_step, evaluate
from thinned.engine.exact import CELLS, cells_of, exact_collect, exact_steps, spans
from thinned.engine.metrics import BatchSums, Totals
from thinned.engine.step import AXIS, Chunk, TrainState, collect, train_steps
from thinned.models.apply import BATCH_SIZE, padded_batches

_LARGE = 2**16
"""Parameters of fewer numbers are on every device: sending them would take longer than holding."""


class Layout:
    """One device: the default, and what the others are measured by."""

    leads = True
    """Whether this process writes and speaks."""

    @property
    def about(self) -> str:
        """What a person is told of it; nothing of one device."""
        return ""

    def everywhere(self, tree: Any) -> Any:
        """Arrays of the host on every device."""
        return jax.device_put(tree)

    def placed(self, state: TrainState) -> TrainState:
        """A state, equal in all processes, where the steps want it."""
        return state

    def whole(self, state: TrainState) -> TrainState:
        """A state of which every device has everything."""
        return state

    def columns(self, batch_size: int) -> np.ndarray | None:
        """The places in every batch that each device of this process sees, i64 [device, place].

        Filled up with -1, so that all have as many; None where there is one device.
        """
        return None

    def streamed(self, parts: Sequence[Batch]) -> Batch:
        """What was read for the devices of this process, each [step, place, ...]: as one."""
        raise NotImplementedError

    def steps(
        self, state: TrainState, data: Batch, chunk: Chunk, count: int, augment: Augment | None
    ) -> tuple[TrainState, BatchSums]:
        """See `thinned.engine.step.train_steps`."""
        return train_steps(state, data, chunk, jnp.int32(count), augment)

    def collect(
        self,
        state: TrainState,
        data: Batch,
        chunk: Chunk,
        seen: int,
        count: int,
        augment: Augment | None,
    ) -> Variables:
        """See `thinned.engine.step.collect`."""
        return collect(state, data, chunk, jnp.int32(seen), jnp.int32(count), augment)

    def evaluate(
        self, apply_fn: Callable[..., Any], variables: Variables, data: Batch | Split
    ) -> Evaluation:
        """See `thinned.engine.evaluation.evaluate`."""
        return evaluate(apply_fn, variables, data)

    def agreed(self, count: int, number: int, since_s: float) -> tuple[int, int, float]:
        """What clocks and signals of single processes say, for all: steps, signal, seconds."""
        return count, number, since_s


ONE_DEVICE = Layout()
"""The layout of a run that shares nothing."""


class _Shared(Layout):
    """Several devices, each with all parameters."""

    def __init__(self, devices: Sequence[Any]) -> None:
        self.mesh = Mesh(np.asarray(devices), (AXIS,))
        self.leads = jax.process_index() == 0
        self._here = [device.process_index == jax.process_index() for device in devices]
        self._all = NamedSharding(self.mesh, P())
        self._own = NamedSharding(self.mesh, P(AXIS))

    @override
    def everywhere(self, tree: Any) -> Any:
        return jax.tree.map(self._everywhere, tree)

    def _everywhere(self, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = self._everywhere(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        held = np.asarray(leaf)
        return jax.make_array_from_callback(held.shape, self._all, lambda index: held[index])

    @override
    def placed(self, state: TrainState) -> TrainState:
        return self.everywhere(state)

    @property
    def _told(self) -> str:
        processes = jax.process_count()
        of = f" of {processes} processes" if processes > 1 else ""
        return f"{self.mesh.size} device{'s' * (self.mesh.size > 1)}{of}"

    def _columns(self, batch_size: int) -> np.ndarray:
        raise NotImplementedError

    @override
    def columns(self, batch_size: int) -> np.ndarray | None:
        first, last = self._columns(batch_size)[self._here].T[:, :, None]
        places = first + np.arange(np.ptp(self._columns(batch_size), 1).max())
        return np.where(places < last, places, -1)

    @override
    def streamed(self, parts: Sequence[Batch]) -> Batch:
        return jax.tree.map(lambda *leaves: self._by_device(leaves), *parts)

    def _by_device(self, leaves: Sequence[np.ndarray]) -> jax.Array:
        """Arrays, one for each device of this process, as one with a leading axis [device]."""
        own = [
            jax.device_put(leaf[None], device)
            for leaf, device in zip(leaves, self.mesh.local_devices, strict=True)
        ]
        shape = (self.mesh.size, *leaves[0].shape)
        return jax.make_array_from_single_device_arrays(shape, self._own, own)

    @override
    def evaluate(
        self, apply_fn: Callable[..., Any], variables: Variables, data: Batch | Split
    ) -> Evaluation:
        size = len(data.labels)
        batches = list(padded_batches(size, min(BATCH_SIZE, size)))
        found: list[Any] = []
        for start in range(0, len(batches), self.mesh.size):
            round_ = batches[start : start + self.mesh.size]
            # A device for which no batch is left looks at the first one again, for nothing.
            round_ += [batches[0]] * (self.mesh.size - len(round_))
            found.append(self._evaluated(apply_fn, variables, data, round_))
        sums, predicted, classes = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[: len(batches)], *found
        )
        masks = np.stack([mask for _, mask in batches])
        labels = np.asarray(data.labels)
        return Evaluation(Totals().add(sums), labels, predicted[masks], int(classes[0]))

    def _evaluated(
        self,
        apply_fn: Callable[..., Any],
        variables: Variables,
        data: Batch | Split,
        batches: list[tuple[np.ndarray, np.ndarray]],
    ) -> Any:
        own = [batch for batch, ours in zip(batches, self._here, strict=True) if ours]
        part = (
            data
            if isinstance(data, Batch)
            else self.streamed([_read(data, rows) for rows, _ in own])
        )
        rows, masks = (self._by_device(each) for each in zip(*own, strict=True))
        return self._fetched(_evaluated(apply_fn, variables, part, rows, masks, self.mesh))

    def _fetched(self, tree: Any) -> Any:
        if not self.mesh.is_multi_process:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    @override
    def agreed(self, count: int, number: int, since_s: float) -> tuple[int, int, float]:
        if jax.process_count() == 1:
            return count, number, since_s
        mine = np.asarray([count, number, since_s], np.float32)
        found = np.asarray(multihost_utils.process_allgather(mine))
        # Whichever of them was asked to stop, all stop.
        return int(found[0, 0]), int(found[:, 1].max()), float(found[0, 2])


def _read(split: Split, rows: np.ndarray) -> Batch:
    held: Any = split.images[rows], split.labels[rows]
    return Batch(*held)


@partial(jax.jit, static_argnames=("apply_fn", "mesh"))
def _evaluated(
    apply_fn: Callable[..., Any],
    variables: Variables,
    data: Batch,
    rows: jax.Array,
    masks: jax.Array,
    mesh: Mesh,
) -> Any:
    """What `eval_step` gives for the batch of each device, each leaf [device, ...]."""

    def local(variables: Variables, data: Batch, rows: jax.Array, masks: jax.Array) -> Any:
        own, places = data, rows[0]
        if data.labels.ndim > 1:
            own = jax.tree.map(lambda leaf: leaf[0], data)
            places = jnp.arange(len(places), dtype=jnp.int32)
        found = eval_step(apply_fn, variables, own, places, masks[0])
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], found)

    place = P() if data.labels.ndim == 1 else P(AXIS)
    shared = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), place, P(AXIS), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=False,
    )
    return shared(variables, data, rows, masks)


class Exact(_Shared):
    """The same bits on any number of devices and processes, see `thinned.engine.exact`."""

    @property
    @override
    def about(self) -> str:
        return f"{self._told}: the bits are the same on any number of them"

    @override
    def _columns(self, batch_size: int) -> np.ndarray:
        cells = cells_of(batch_size)
        return spans(cells, self.mesh.size) * (batch_size // cells)

    def _shares(self, chunk: Chunk) -> jax.Array:
        held = spans(cells_of(chunk.order.shape[1]), self.mesh.size)
        return jax.make_array_from_callback(held.shape, self._own, lambda index: held[index])

    @override
    def steps(
        self, state: TrainState, data: Batch, chunk: Chunk, count: int, augment: Augment | None
    ) -> tuple[TrainState, BatchSums]:
        chunk, count, once = self.everywhere((chunk, np.int32(count), np.int32(1)))
        return exact_steps(state, data, chunk, self._shares(chunk), count, once, augment, self.mesh)

    @override
    def collect(
        self,
        state: TrainState,
        data: Batch,
        chunk: Chunk,
        seen: int,
        count: int,
        augment: Augment | None,
    ) -> Variables:
        numbers = (np.int32(seen), np.int32(count), np.int32(1))
        chunk, (seen, count, once) = self.everywhere((chunk, numbers))
        own = self._shares(chunk)
        return exact_collect(state, data, chunk, own, seen, count, once, augment, self.mesh)


class Fast(_Shared):
    """One program that XLA shares out: sums come in another order for each number of devices.

    Args:
        devices: those of all processes.
        shard: whether large parameters, and what the optimizer keeps of them, are cut up, too.
    """

    def __init__(self, devices: Sequence[Any], shard: bool = False) -> None:
        super().__init__(devices)
        self._shard = shard

    @property
    @override
    def about(self) -> str:
        return f"{self._told}: another number of them gives the same masks, and differs by rounding"

    @override
    def _columns(self, batch_size: int) -> np.ndarray:
        edges = np.arange(self.mesh.size + 1) * (batch_size // self.mesh.size)
        return np.stack([edges[:-1], edges[1:]], 1)

    @override
    def placed(self, state: TrainState) -> TrainState:
        return self._cut(self.everywhere(state))

    def _cut(self, state: TrainState) -> TrainState:
        # XLA leaves what it computed wherever that was convenient.
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._place(leaf)), state)

    def _place(self, leaf: jax.Array) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % self.mesh.size == 0]
        if not self._shard or leaf.size < _LARGE or not axes:
            return self._all
        widest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, P(*[None] * widest, AXIS))

    @override
    def whole(self, state: TrainState) -> TrainState:
        return jax.device_put(state, self._all) if self._shard else state

    @override
    def steps(
        self, state: TrainState, data: Batch, chunk: Chunk, count: int, augment: Augment | None
    ) -> tuple[TrainState, BatchSums]:
        chunk, count = self.everywhere((chunk, np.int32(count)))
        state, sums = train_steps(state, data, chunk, count, augment, self.mesh)
        return self._cut(state), jax.device_put(sums, self._all)

    @override
    def collect(
        self,
        state: TrainState,
        data: Batch,
        chunk: Chunk,
        seen: int,
        count: int,
        augment: Augment | None,
    ) -> Variables:
        chunk, seen, count = self.everywhere((chunk, np.int32(seen), np.int32(count)))
        return collect(state, data, chunk, seen, count, augment, self.mesh)


def all_here() -> Layout:
    """All devices of this process, each with whole batches: for what evaluates."""
    devices = jax.local_devices()
    return ONE_DEVICE if len(devices) == 1 else Exact(devices)


def with_parallel(config: Config) -> Config:
    """The config of a new run, with ``--parallel auto`` written out."""
    if config.parallel != "auto":
        return config
    return replace(config, parallel="no" if config.devices == 1 else "exact")


def layout_of(config: Config) -> Layout:
    """The layout that a config asks for, on the devices that there are.

    Raises:
        RequestError: there are not so many, or they cannot share its batches.
    """
    if config.parallel in ("auto", "no"):
        if config.devices != 1 or jax.process_count() > 1:
            raise RequestError(
                f"--devices {config.devices}: this run was begun on one device, and its bits would "
                "change; begin a new one with --parallel exact or fast"
            )
        return ONE_DEVICE
    devices = _devices(config.devices)
    if config.parallel == "exact":
        cells = cells_of(config.batch_size)
        if len(devices) > cells:
            raise RequestError(
                f"--batch-size {config.batch_size} is cut into {cells} equal parts, for at most as "
                f"many devices, and there are {len(devices)}: give a multiple of {CELLS}, fewer "
                "--devices, or --parallel fast"
            )
        return Exact(devices)
    if config.batch_size % len(devices):
        raise RequestError(
            f"--batch-size {config.batch_size} cannot be divided by {len(devices)} devices"
        )
    return Fast(devices, config.shard_parameters)


def _devices(wanted: int | str) -> list[Any]:
    found = jax.devices()
    count = len(found) if wanted == "all" else int(wanted)
    if count > len(found):
        raise RequestError(f"--devices {wanted}: JAX finds {len(found)} ({found[0].platform})")
    if jax.process_count() > 1 and count != len(found):
        raise RequestError(
            f"--devices {wanted}: {jax.process_count()} processes share all of their "
            f"{len(found)} devices: give --devices all"
        )
    local = {device.process_index: 0 for device in found}
    for device in found:
        local[device.process_index] += 1
    if len(set(local.values())) > 1:
        raise RequestError(
            f"processes have {sorted(local.values())} devices: give all equally many"
        )
    return found[:count]
