"""Calling a network: inputs normalised, any number of images in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from thinned.core.errors import RequestError
from thinned.core.types import Variables
from thinned.data.batch import as_float

INPUT_STATISTICS = "input_statistics"
"""The collection of mean and deviation by which `Normalised` brings inputs to scale."""
BATCH_SIZE = 100
"""Images in one evaluation batch, unless told otherwise: on a CPU, few enough for its caches."""


@dataclass(frozen=True)
class Normalised:
    """The ``apply`` of a module whose inputs are first brought to mean 0 and deviation 1.

    Mean and deviation are variables, see `statistics`, and no part of the compiled program: seeds
    that hold out other images share one.

    Attributes:
        apply_fn: called with (images - mean) / deviation, and without the statistics.
    """

    apply_fn: Callable[..., Any]

    @staticmethod
    def statistics(mean: Sequence[float], deviation: Sequence[float]) -> dict[str, Any]:
        """The collection that `__call__` wants among the variables.

        Args:
            mean: of the training images in [0, 1], by channel.
            deviation: their standard deviation, above 0, by channel.
        """
        held = {"mean": mean, "deviation": deviation}
        return {
            INPUT_STATISTICS: {name: jnp.asarray(part, jnp.float32) for name, part in held.items()}
        }

    def __call__(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """See ``flax.linen.Module.apply``."""
        own = variables[INPUT_STATISTICS]
        rest = {name: held for name, held in variables.items() if name != INPUT_STATISTICS}
        return self.apply_fn(rest, (images - own["mean"]) / own["deviation"], **options)


_PHOTO = 3 * 96 * 96
_PIECE = 2
# Of each 16 images of 224 pixels 300 MB of maps are written: docs/performance.md.

FROZEN = "frozen"
"""The collection of parameters that no step changes, see `Frozen`."""


@dataclass(frozen=True)
class Frozen:
    """The ``apply`` of a module some of whose parameters lie in a collection of their own.

    What lies there takes no gradient, no state of an optimizer and no room in checkpoints.

    Attributes:
        apply_fn: called with all parameters together.
    """

    apply_fn: Callable[..., Any]

    def __call__(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        """See ``flax.linen.Module.apply``."""
        return self.apply_fn(with_frozen(variables), images, **options)


def with_frozen(variables: Variables) -> dict[str, Any]:
    """Variables with the parameters that no step changes among the others."""
    rest = dict(variables)
    fixed = rest.pop(FROZEN, {})
    return {**rest, "params": {**fixed, **rest["params"]}}


@dataclass(frozen=True)
class Stages:
    """The ``apply`` of a part of a network, see `thinned.models.staged.Staged`.

    Attributes:
        apply_fn: of the whole network.
        begin: the stage that takes the inputs.
        stop: the stage that no longer runs; None where all the rest do.
    """

    apply_fn: Callable[..., Any]
    begin: int = 0
    stop: int | None = None

    def __call__(self, variables: Any, inputs: jax.Array, **options: Any) -> Any:
        """See ``flax.linen.Module.apply``."""
        return self.apply_fn(variables, inputs, begin=self.begin, stop=self.stop, **options)


@partial(jax.jit, static_argnames="apply_fn")
def logits_of(apply_fn: Callable[..., Any], variables: Variables, images: jax.Array) -> jax.Array:
    """Logits f32 [batch, class] with dropout off: the deterministic pass (weight scaling)."""
    return in_pieces(lambda part: apply_fn(variables, as_float(part), train=False), images)


def in_pieces(function: Callable[[jax.Array], Any], images: jax.Array) -> Any:
    """What a function makes of a batch; of photos on a CPU, in pieces whose maps stay in the cache.

    Args:
        function: of [batch, height, width, channel], each image for itself, to arrays [batch, ...].
        images: such a batch.
    """
    if export.is_symbolic_dim(images.shape[0]):
        return function(images)
    large = images[0].size >= _PHOTO and len(images) > _PIECE and len(images) % _PIECE == 0
    if not large or jax.default_backend() != "cpu":
        return function(images)
    made = jax.lax.map(function, images.reshape(-1, _PIECE, *images.shape[1:]))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), made)


def padded_batches(size: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows i32 [batch] and mask bool [batch] that cover ``range(size)`` exactly once.

    The last batch is filled up with row 0, masked out, so that one compiled shape serves all.
    """
    for start in range(0, size, batch):
        rows = np.arange(start, start + batch, dtype=np.int32)
        mask = rows < size
        yield np.where(mask, rows, 0), mask


def predict(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: np.ndarray,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Class probabilities with dropout off.

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        variables: its variables.
        images: u8 [image, height, width, channel], or f32 in [0, 1].
        batch_size: images in one compiled call.

    Returns:
        f32 [image, class], each row summing to 1.
    """
    return np.asarray(jax.nn.softmax(predict_logits(apply_fn, variables, images, batch_size)))


def predict_logits(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: Any,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Logits f32 [image, class] with dropout off; arguments as for `predict`."""
    return np.concatenate(list(logits_by_batch(apply_fn, variables, images, batch_size)))


def logits_by_batch(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: Any,
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """The same batch by batch, f32 [batch, class], for networks of very many classes."""
    size = min(batch_size, max(len(images), 1))
    for found, mask in shared_out(logits_of, (apply_fn,), (variables,), images, size):
        yield found[mask]


def shared_out(
    work: Callable[..., Any],
    fixed: tuple[Any, ...],
    arrays: tuple[Any, ...],
    images: Any,
    batch_size: int,
) -> Iterator[tuple[Any, np.ndarray]]:
    """What `work` makes of images, batch by batch; the devices of this process take them in turn.

    Each device computes a whole batch, so that their number changes no bits.

    Args:
        work: a compiled function, called as ``work(*fixed, *arrays, images of a batch)``.
        fixed: hashable.
        arrays: pytrees.
        images: [image, ...], or anything that reads so by indexing.
        batch_size: images of a batch.

    Returns:
        For each batch a pytree in host memory, and mask bool [batch], False for padding.
    """
    devices = jax.local_devices()
    batches = list(padded_batches(len(images), batch_size))
    if len(devices) == 1:
        for rows, mask in batches:
            yield jax.device_get(work(*fixed, *arrays, jax.device_put(images[rows]))), mask
        return
    mesh = Mesh(np.asarray(devices), ("batch",))
    held = jax.device_put(arrays, NamedSharding(mesh, P()))
    for start in range(0, len(batches), len(devices)):
        here = batches[start : start + len(devices)]
        # A device for which no batch is left repeats the first one.
        rows = np.stack([rows for rows, _ in here] + [here[0][0]] * (len(devices) - len(here)))
        parts = np.asarray(images[rows.reshape(-1)])
        found = _on_each(work, fixed, mesh, held, parts.reshape(*rows.shape, *parts.shape[1:]))
        made = jax.device_get(found)
        for index, (_, mask) in enumerate(here):
            yield jax.tree.map(lambda leaf, index=index: leaf[index], made), mask


@partial(jax.jit, static_argnames=("work", "fixed", "mesh"))
def _on_each(
    work: Callable[..., Any],
    fixed: tuple[Any, ...],
    mesh: Mesh,
    arrays: tuple[Any, ...],
    images: jax.Array,
) -> Any:
    def local(arrays: tuple[Any, ...], images: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], work(*fixed, *arrays, images[0]))

    places = (P(), P("batch"))
    return jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=P("batch"), check_vma=False)(
        arrays, images
    )


def features_by_batch(
    apply_fn: Callable[..., Any], variables: Variables, images: Any, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What enters the last dense layer, and the logits, with dropout off, batch by batch.

    Args:
        apply_fn, variables, images, batch_size: as for `predict`.

    Yields:
        f32 [batch, feature] and f32 [batch, class].

    Raises:
        RequestError: as `last_dense`.
    """
    last_dense(apply_fn, variables, images[:1])
    size = min(batch_size, max(len(images), 1))
    shared = shared_out(_features_and_logits, (apply_fn,), (variables,), images, size)
    for (features, logits), mask in shared:
        yield features[mask], logits[mask]


def last_dense(
    apply_fn: Callable[..., Any], variables: Variables, images: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel f32 [feature, class] and bias f32 [class] of the layer whose outputs are the logits.

    Raises:
        RequestError: the network does not end in a dense layer of Linen.
    """
    watched = _Watched()
    jax.eval_shape(partial(watched, apply_fn), variables, jnp.asarray(images))
    held: Any = with_frozen(variables)["params"]
    for name in watched.path:
        held = held[name]
    kernel = np.asarray(held["kernel"])
    bias = np.asarray(held["bias"]) if "bias" in held else np.zeros(kernel.shape[1], np.float32)
    return kernel, bias


@partial(jax.jit, static_argnames="apply_fn")
def _features_and_logits(
    apply_fn: Callable[..., Any], variables: Variables, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return in_pieces(partial(_Watched(), apply_fn, variables), images)


class _Watched:
    """Calls a network, and sees what enters the dense layer that makes its logits."""

    def __init__(self) -> None:
        self.path: tuple[str, ...] = ()

    def __call__(
        self, apply_fn: Callable[..., Any], variables: Variables, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Features f32 [batch, feature], logits f32 [batch, class]."""
        calls: list[tuple[tuple[str, ...], Any, Any]] = []

        def intercept(call: Any, args: Any, options: Any, context: Any) -> Any:
            made = call(*args, **options)
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                calls.append((context.module.path, args[0], made))
            return made

        with nn.intercept_methods(intercept):
            logits = apply_fn(variables, as_float(images), train=False)
        for self.path, features, made in reversed(calls):
            if made is logits and features.ndim == 2:
                return features, logits
        raise RequestError(
            "this network does not end in a dense layer of Linen: what enters it cannot be seen, "
            "and only energy tells how strange an image is"
        )
