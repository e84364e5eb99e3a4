"""Monte Carlo dropout: many thinned networks for little more than one pass.

A network is traced once, and its operations are parted into those that depend on the dropout key
and those that do not. The latter, the trunk, run once; only what follows the first random site runs
for each sample. Nothing is found by the names of layers, so that it works for any module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from thinned.dropout.recording import dropout_on
from thinned.errors import RequestError
from thinned.predict import padded_batches
from thinned.step import as_float
from thinned.types import Key, Variables

_TOGETHER = 4
BLOCK = 100
"""Images sampled together; a fixed number, so that a sample is the same whatever is asked for."""


class SampleSums(NamedTuple):
    """Sums over the samples of a block of images; merged by addition.

    Attributes:
        probabilities: f32 [image, class].
        squares: f32 [image, class], of the probabilities.
        entropies: f32 [image], of each sample's probabilities, in nats.
        energies: f32 [image], the free energy -log sum exp of each sample's logits.
        samples: i32 [].
    """

    probabilities: jax.Array
    squares: jax.Array
    entropies: jax.Array
    energies: jax.Array
    samples: jax.Array


class Predictions(NamedTuple):
    """What a network, or several, say of images.

    Attributes:
        probabilities: f64 [image, class], mean over all samples and networks.
        deviation: f64 [image], standard deviation over samples of the most probable class's
            probability; 0 without samples.
        expected_entropy: f64 [image], mean entropy of single samples, in nats.
        energy: f64 [image], mean free energy -log sum exp of the logits (Liu et al. 2020); higher
            is less like the training data.
        samples: thinned networks behind each row; 1 for a plain pass.
    """

    probabilities: np.ndarray
    deviation: np.ndarray
    expected_entropy: np.ndarray
    energy: np.ndarray
    samples: int

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy f64 [image], in nats: all uncertainty there is."""
        return entropy_of(self.probabilities)

    @property
    def mutual_information(self) -> np.ndarray:
        """f64 [image], in nats: how much the samples disagree (BALD, Houlsby et al. 2011)."""
        return np.maximum(self.entropy - self.expected_entropy, 0.0)


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Shannon entropy over the last axis, in nats; 0 log 0 is 0."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -np.sum(probabilities * np.log(safe), -1)


def split_by_key(
    function: Callable[..., jax.Array], key: Key, *known: Any
) -> tuple[list[Any], Callable[[list[Any], Key], jax.Array], bool]:
    """Run what of a function does not depend on a key, and return the rest as a function.

    Args:
        function: called as ``function(key, *known)``; may be traced, returns one array.
        key: any key of the kind that will be used.
        known: all its other arguments.

    Returns:
        The values at the border, a function of (these values, a key), and whether anything depends
        on the key at all.
    """
    flat, tree = jax.tree.flatten(known)

    def flattened(key: Key, *leaves: Any) -> jax.Array:
        return function(key, *jax.tree.unflatten(tree, leaves))

    closed = jax.make_jaxpr(flattened)(key, *flat)
    jaxpr = closed.jaxpr
    random = {jaxpr.invars[0]}
    trunk: list[Any] = []
    head: list[Any] = []
    for equation in jaxpr.eqns:
        inputs = {var for var in equation.invars if not isinstance(var, jex_core.Literal)}
        if inputs & random:
            random.update(equation.outvars)
            head.append(equation)
        else:
            trunk.append(equation)
    (out,) = jaxpr.outvars
    used = {
        var for equation in head for var in equation.invars if not isinstance(var, jex_core.Literal)
    }
    given = [*jaxpr.constvars, *jaxpr.invars[1:]]
    made = [var for equation in trunk for var in equation.outvars]
    border = [var for var in dict.fromkeys([*given, *made]) if var in used or var is out]
    values = _function_of(jaxpr, given, border, trunk)(*closed.consts, *flat)
    rest = _function_of(jaxpr, [*border, jaxpr.invars[0]], [out], head)

    def sample(values: list[Any], key: Key) -> jax.Array:
        return rest(*values, key)[0]

    return values, sample, out in random


def _function_of(
    jaxpr: Any, inputs: Sequence[Any], outputs: Sequence[Any], equations: Sequence[Any]
) -> Callable[..., list[Any]]:
    """Some equations of a jaxpr as a function of some of its variables."""
    part = jaxpr.replace(
        constvars=[],
        invars=list(inputs),
        outvars=list(outputs),
        eqns=list(equations),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(part, []))


@partial(jax.jit, static_argnames="apply_fn")
def sample_block(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: jax.Array,
    key: Key,
    count: jax.Array,
) -> SampleSums:
    """Sums over the first `count` samples of a block of images.

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        variables: its variables, the rates to sample with among them.
        images: u8 or f32 [image, height, width, channel].
        key: of this block; sample i uses ``fold_in(key, i)``.
        count: i32 [], traced: one program serves any number.
    """
    together = jnp.arange(_TOGETHER)
    values, sample, _ = split_by_key(_thinned(apply_fn), key, variables, images)

    def body(turn: jax.Array, sums: SampleSums) -> SampleSums:
        places = turn * _TOGETHER + together
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        logits = jax.vmap(lambda own: sample(values, own))(keys).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        # Samples beyond the last count for nothing.
        real = (places < count).astype(jnp.float32)
        p = jnp.exp(log_p) * real[:, None, None]
        return SampleSums(
            sums.probabilities + p.sum(0),
            sums.squares + (p * p).sum(0),
            sums.entropies - jnp.sum(p * log_p, (0, 2)),
            sums.energies - jnp.sum(jax.nn.logsumexp(logits, -1) * real[:, None], 0),
            sums.samples + real.sum().astype(jnp.int32),
        )

    shape = jax.eval_shape(lambda: sample(values, key)).shape
    nothing = jnp.zeros(shape, jnp.float32)
    empty = SampleSums(nothing, nothing, nothing[:, 0], nothing[:, 0], jnp.int32(0))
    return jax.lax.fori_loop(0, -(-count // _TOGETHER), body, empty)


def is_random(apply_fn: Callable[..., Any], variables: Variables, images: jax.Array) -> bool:
    """Whether a network's outputs depend on the dropout key when its dropout is on."""
    found: list[bool] = []

    def look(variables: Variables, images: jax.Array) -> None:
        found.append(split_by_key(_thinned(apply_fn), jax.random.key(0), variables, images)[2])

    jax.eval_shape(look, variables, images)
    return found[0]


def _thinned(apply_fn: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Logits of a network with its dropout on, as a function of the key first."""

    def network(key: Key, variables: Variables, images: jax.Array) -> jax.Array:
        with dropout_on():
            return apply_fn(variables, as_float(images), train=False, rngs={"dropout": key})

    return network


def sample_predictions(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: Any,
    key: Key,
    samples: int,
) -> Predictions:
    """Predictions by Monte Carlo dropout (Gal & Ghahramani 2016).

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        variables: its variables; the collection ``rates``, if any, says how much is dropped.
        images: u8 [image, height, width, channel], or anything that reads so by indexing.
        key: of all samples; block b of `BLOCK` images uses ``fold_in(key, b)``.
        samples: thinned networks, at least 1.

    Raises:
        RequestError: `samples` is below 1, or nothing in the network is random.
    """
    if samples < 1:
        raise RequestError(f"samples is {samples}: must be at least 1")
    if not is_random(apply_fn, variables, jnp.asarray(images[np.arange(1)])):
        raise RequestError("the network drops nothing: it cannot be sampled")
    parts: list[Predictions] = []
    for block, (rows, mask) in enumerate(padded_batches(len(images), BLOCK)):
        own = jax.random.fold_in(key, block)
        sums = sample_block(apply_fn, variables, jnp.asarray(images[rows]), own, jnp.int32(samples))
        parts.append(_finished(jax.device_get(sums), int(mask.sum())))
    return joined(parts)


def _finished(sums: SampleSums, rows: int) -> Predictions:
    count = int(sums.samples)
    mean = np.asarray(sums.probabilities, np.float64)[:rows] / count
    mean = mean / mean.sum(1, keepdims=True)
    squares = np.asarray(sums.squares, np.float64)[:rows] / count
    top = mean.argmax(1)[:, None]
    variance = np.take_along_axis(squares - mean**2, top, 1)[:, 0]
    scale = count / (count - 1) if count > 1 else 0.0
    deviation = np.sqrt(np.maximum(variance, 0) * scale)
    entropies, energies = (
        np.asarray(each, np.float64)[:rows] / count for each in (sums.entropies, sums.energies)
    )
    return Predictions(mean, deviation, entropies, energies, count)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several parts of the images, one after another."""
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.deviation for part in parts]),
        np.concatenate([part.expected_entropy for part in parts]),
        np.concatenate([part.energy for part in parts]),
        parts[0].samples if parts else 1,
    )


def averaged(members: Sequence[Predictions]) -> Predictions:
    """A deep ensemble (Lakshminarayanan et al. 2017): the mean of several networks' predictions."""
    mean = np.mean([member.probabilities for member in members], 0)
    top = mean.argmax(1)[:, None]
    tops = np.stack([np.take_along_axis(m.probabilities, top, 1)[:, 0] for m in members])
    inner = np.mean([np.square(member.deviation) for member in members], 0)
    # Spread within the networks and between them.
    deviation = np.sqrt(inner + tops.var(0)) if len(members) > 1 else members[0].deviation
    entropy = np.mean([member.expected_entropy for member in members], 0)
    energy = np.mean([member.energy for member in members], 0)
    return Predictions(mean, deviation, entropy, energy, sum(m.samples for m in members))
