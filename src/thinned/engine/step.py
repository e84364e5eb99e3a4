"""The training state, the step that changes it, and a compiled loop over many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from thinned.core.types import Key, Variables
from thinned.data.augment import Augment
from thinned.data.batch import Batch, as_float
from thinned.dropout.linen import LOSSES
from thinned.engine.losses import cross_entropy, disagreement, smoothed
from thinned.engine.metrics import BatchSums, batch_sums
from thinned.engine.optim import LOSS_NUMBERS, with_numbers
from thinned.models.apply import FROZEN, Frozen

AXIS = "devices"
"""The axis of a mesh over which a batch is shared."""


class TrainState(train_state.TrainState):
    """Flax's `TrainState` with the other variable collections of the model beside `params`.

    Attributes:
        model_state: collections that the forward pass updates, e.g. ``batch_stats``; often empty.
        average: a moving average of `params` that is evaluated in their stead, or None.
        average_state: the `model_state` that goes with `average`, see `collect`; or None.
        constants: collections that no step changes, as the statistics of inputs; not saved.
    """

    model_state: Variables
    average: Any = None
    average_state: Any = None
    constants: Variables = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the model, for its ``apply`` at prediction time."""
        params = self.params if self.average is None else self.average
        collected = self.model_state if self.average_state is None else self.average_state
        return {"params": params, **collected, **self.constants}


def create_state(
    model: nn.Module,
    images: jax.Array,
    key: Key,
    tx: optax.GradientTransformation,
    start: Variables | None = None,
    is_fixed: Callable[[str], bool] = lambda name: False,
) -> TrainState:
    """Initialise a model and its optimizer.

    Args:
        model: a Linen module called as ``model(images, train=bool)``.
        images: an example batch, f32 [batch, height, width, channel]; only its shape matters.
        key: the key of the stream `params`; parameters equal those of ``model.init(key, images)``.
        tx: an Optax optimizer.
        start: variables that are laid over those, where they come from elsewhere.
        is_fixed: whether no step changes the parameters, or the collection, of an outermost name.

    Returns:
        A `TrainState` at step 0.
    """
    variables = dict(_initialised(model.init, key, images))
    if start is not None:
        variables = laid_over(variables, start)
    params: Any = dict(variables.pop("params"))
    held = {name: params.pop(name) for name in list(params) if is_fixed(name)}
    constants = {name: variables.pop(name) for name in list(variables) if is_fixed(name)}
    if held:
        constants[FROZEN] = held
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        apply_fn=Frozen(model.apply) if held else model.apply,
        params=params,
        tx=tx,
        opt_state=tx.init(params),
        model_state=variables,
        constants=constants,
    )


def laid_over(below: Any, above: Any) -> Any:
    """A tree of mappings with the leaves of another in the place of its own."""
    if not isinstance(above, Mapping):
        return jnp.asarray(above)
    found = dict(below)
    return found | {name: laid_over(found.get(name, {}), held) for name, held in above.items()}


@partial(jax.jit, static_argnums=0)
def _initialised(init: Callable[..., Variables], key: Key, images: jax.Array) -> Variables:
    # One program for one network: the runs of a study differ in their seeds.
    return init(key, images, train=False)


class Chunk(NamedTuple):
    """What several steps in a row use, one entry a step; all of it computed from addresses.

    Attributes:
        order: i32 [step, batch], rows of the training set.
        keys: keys [step] of the stream `dropout`.
        rates: the collection ``rates`` of the model, each leaf f32 [step].
        augment_keys: keys [step] of the stream `augment`; None where nothing is varied.
        numbers: of optimizer and loss by name, see `thinned.engine.optim.numbers_at`; each
            f32 [step].
    """

    order: jax.Array
    keys: Key
    rates: Variables
    augment_keys: Key | None = None
    numbers: dict[str, jax.Array] | None = None


def train_step(
    state: TrainState,
    batch: Batch,
    rates: Variables,
    key: Key,
    numbers: Mapping[str, jax.Array] | None = None,
) -> tuple[TrainState, BatchSums]:
    """One step of gradient descent on the mean loss of a batch.

    To that loss is added whatever layers sow into the collection ``losses`` (a learned rate's
    regulariser) and what `numbers` ask for; the sums that are returned hold the cross-entropy
    alone, of labels that are not smoothed.

    Args:
        state: the state before the step. ``state.apply_fn`` is called as
            ``apply_fn(variables, images, train=True, rngs={"dropout": key}, mutable=[...])``.
        batch: the examples.
        rates: drop probabilities, as the variable collection ``rates`` (see
            `thinned.dropout.sites.rates_collection`); f32 [], may be traced; empty means each
            layer's own.
        key: the dropout key of this step, see `thinned.key_for`.
        numbers: of optimizer and loss by name, see `thinned.engine.optim.numbers_at`, each f32 [];
            None leaves the optimizer's as they are, and adds nothing to the loss.

    Returns:
        The state after the step, and the sums of the batch as the network saw it, masks included.
    """
    grads, model_state, sums = gradients(state, batch, rates, key, numbers)
    return updated(state, grads, model_state, numbers), sums


def gradients(
    state: TrainState,
    batch: Batch,
    rates: Variables,
    key: Key,
    numbers: Mapping[str, jax.Array] | None = None,
) -> tuple[Any, Variables, BatchSums]:
    """The first half of a step: gradients, the new `model_state`, and the sums of the batch.

    Args:
        state, batch, rates, key, numbers: as for `train_step`.
    """
    extra = numbers or {}
    size = len(batch.labels)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, **state.model_state, **state.constants}
        if rates:
            variables["rates"] = rates
        images = as_float(batch.images)
        if "r_drop" in extra:
            images = jnp.concatenate([images, images])
        logits, updates = state.apply_fn(
            variables,
            images,
            train=True,
            rngs={"dropout": key},
            mutable=[*state.model_state, LOSSES],
        )
        targets = batch.labels if batch.targets is None else batch.targets
        losses = cross_entropy(logits[:size], targets)
        total = sum(jax.tree.leaves(updates.get(LOSSES, {})))
        learned = losses
        if "label_smoothing" in extra:
            targets = smoothed(targets, logits.shape[-1], extra["label_smoothing"])
            learned = cross_entropy(logits[:size], targets)
        if "r_drop" in extra:
            again = cross_entropy(logits[size:], targets)
            divergence = disagreement(logits[:size], logits[size:])
            learned = 0.5 * (learned + again + extra["r_drop"] * divergence)
        if batch.weights is not None:
            learned = learned * batch.weights
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        if "l1" in extra:
            total += extra["l1"] * sum(jnp.abs(kernel).sum() for kernel in kernels)
        if "l2" in extra:
            total += 0.5 * extra["l2"] * sum(jnp.square(kernel).sum() for kernel in kernels)
        return learned.mean() + total, (losses, logits[:size], updates)

    grads, (losses, logits, updates) = jax.grad(loss_of, has_aux=True)(state.params)
    model_state = {name: updates[name] for name in state.model_state}
    return grads, model_state, batch_sums(losses, logits, batch.labels)


def updated(
    state: TrainState,
    grads: Any,
    model_state: Variables,
    numbers: Mapping[str, jax.Array] | None = None,
) -> TrainState:
    """The second half of a step: the state after it.

    Args:
        state, numbers: as for `train_step`.
        grads, model_state: of its batch, see `gradients`.
    """
    given = dict(numbers or {})
    own = {name: given[name] for name in given if name not in LOSS_NUMBERS}
    if own:
        state = state.replace(opt_state=with_numbers(state.opt_state, own))
    state = state.apply_gradients(grads=grads, model_state=model_state)
    if "ema" in given:
        state = state.replace(average=_averaged(state, given["ema"]))
    return state


def _averaged(state: TrainState, decay: jax.Array) -> Any:
    """The moving average after a step; young averages forget faster, so that none drags along."""
    count = jnp.asarray(state.step, jnp.float32)
    decay = jnp.minimum(decay, count / (count + 9.0))
    return jax.tree.map(
        lambda mean, new: decay * mean + (1 - decay) * new, state.average, state.params
    )


@partial(jax.jit, donate_argnames="state", static_argnames=("augment", "mesh"))
def train_steps(
    state: TrainState,
    data: Batch,
    chunk: Chunk,
    count: jax.Array,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, BatchSums]:
    """The first `count` steps of a chunk as one compiled call.

    The number of steps is traced, so one program serves any number: a run that is stopped in
    mid-chunk repeats the very same machine code when it goes on, and so the very same bits.

    Args:
        state: donated: its buffers are reused, do not touch it afterwards.
        data: the whole training set, on the device.
        chunk: orders, keys and rates, padded to a fixed number of steps.
        count: i32 [], at most the number of steps in `chunk`.
        augment: how images are varied before each step.
        mesh: devices that share each batch; `data` may then be those of the chunk alone, with axes
            [device, step, its images].

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
        batch, own = _at(index, data, chunk, augment, mesh)
        state, step_sums = train_step(state, batch, own.rates, own.keys, own.numbers)
        return state, jax.tree.map(lambda total, one: total.at[index].set(one), sums, step_sums)

    return jax.lax.fori_loop(0, count, body, (state, empty))


def _at(
    index: jax.Array, data: Batch, chunk: Chunk, augment: Augment | None, mesh: Mesh | None
) -> tuple[Batch, Chunk]:
    """What one step of a chunk looks at, and its own part of the chunk."""
    own = jax.tree.map(lambda leaf: leaf[index], chunk)
    if data.labels.ndim == 1:
        batch = jax.tree.map(lambda leaf: leaf[own.order], data)
    else:
        batch = jax.tree.map(lambda leaf: leaf[:, index].reshape(-1, *leaf.shape[3:]), data)
    if mesh is not None:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P(AXIS)))
    return varied(batch, own, augment), own


def varied(batch: Batch, own: Chunk, augment: Augment | None, first: jax.Array | int = 0) -> Batch:
    """The images of a step, or those from position `first` on, as that step varies them."""
    if augment is None or own.augment_keys is None:
        return batch
    images, targets = augment(as_float(batch.images), batch.labels, own.augment_keys, first)
    return batch._replace(images=images, targets=targets)


@partial(jax.jit, static_argnames=("augment", "mesh"))
def collect(
    state: TrainState,
    data: Batch,
    chunk: Chunk,
    seen: jax.Array,
    count: jax.Array,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
) -> Variables:
    """Go on collecting the batch statistics of the averaged weights (Izmailov et al. 2018, 3.2).

    Weights that were never trained with have no statistics of their own: an average over the path
    of those that were trained with is none, either. So the averaged network sees batches once more,
    as in training: what normalisation sees there, dropout included, is what it learned with. The
    statistics become the plain mean over batches, as in ``torch.optim.swa_utils.update_bn``; other
    modules collect as they always do.

    Args:
        state: with an `average`; its `average_state` is the mean over the batches seen so far.
        data, chunk, augment, mesh: as for `train_steps`.
        seen: i32 [], batches seen so far; with 0, nothing is left of the statistics before.
        count: i32 [], at most the number of steps in `chunk`.

    Returns:
        The `average_state` over `count` batches more.
    """

    def body(index: jax.Array, collected: Variables) -> Variables:
        batch, own = _at(index, data, chunk, augment, mesh)
        return statistics(state, collected, batch, own, seen + index)

    return jax.lax.fori_loop(0, count, body, state.average_state)


def statistics(
    state: TrainState, collected: Variables, batch: Batch, own: Chunk, seen: jax.Array
) -> Variables:
    """The mean of batch statistics with one more batch, see `collect`.

    Args:
        state: with an `average`.
        collected: the mean over the batches before.
        batch: the batch.
        own: its part of a chunk.
        seen: i32 [], how many were before.
    """
    variables = {"params": state.average, **collected, **state.constants}
    if own.rates:
        variables["rates"] = own.rates
    before = seen.astype(jnp.float32)
    with nn.intercept_methods(partial(_with_momentum, before / (before + 1))):
        _, updates = state.apply_fn(
            variables,
            as_float(batch.images),
            train=True,
            rngs={"dropout": own.keys},
            mutable=[*collected, LOSSES],
        )
    return {
        name: jax.tree.map(lambda new, old: new.astype(old.dtype), updates[name], held)
        for name, held in collected.items()
    }


def _with_momentum(
    momentum: jax.Array, call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Call a method; one of batch normalisation with another momentum than its own."""
    if isinstance(context.module, nn.BatchNorm):
        # This object lives for this pass alone, and Linen's attributes are frozen.
        object.__setattr__(context.module, "momentum", momentum)
    return call(*args, **kwargs)
