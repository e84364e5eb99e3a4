"""Monte Carlo dropout: many thinned networks for little more than one pass.

A sample is one thinned network, the same for every image: what is predicted for an image does not
depend on those beside it, and a mask is drawn once for all of them. What does not depend on the
dropout key, the trunk, runs once; only what follows the first random site runs for each sample,
and where that is affine, all samples are one matrix product. Nothing is found by the names of
layers, so that it works for any module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from thinned.core.errors import RequestError
from thinned.core.types import Key, Variables
from thinned.data.batch import as_float
from thinned.dropout.audit.watch_linen import dropout_on, recording
from thinned.models.apply import BATCH_SIZE, shared_out
from thinned.trust.partition import Parted, derivatives, is_affine, split_by_key
from thinned.trust.scores import by_parts

_BLOCK = 10 * BATCH_SIZE
"""Images that share the matrices of their samples, where a head is affine."""

_IN_CACHE = 1 << 19
"""Elements of one array that samples computed together may fill: 2 MiB in f32, a core's cache."""


class SampleSums(NamedTuple):
    """Sums over the samples of a block of images.

    Attributes:
        centre: f32 [image, class], probabilities of the first sample. What the others differ by is
            summed: squares of the probabilities themselves would lose small deviations in f32.
        shifts: f32 [part, image, class], of the probabilities less the centre, over the samples of
            each part.
        squares: f32 [image, class], of those squared, over all.
        entropies: f32 [part, image], of each sample's probabilities, in nats.
        energies: f32 [part, image], the free energy -log sum exp of each sample's logits.
        samples: i32 [part].
    """

    centre: jax.Array
    shifts: jax.Array
    squares: jax.Array
    entropies: jax.Array
    energies: jax.Array
    samples: jax.Array


class Told(NamedTuple):
    """What predictions say of each image, without the probabilities of all classes.

    Attributes:
        predicted: i64 [image], the most probable class.
        confidence: f64 [image], its probability.
        entropy: f64 [image], see `Predictions`.
        mutual_information: f64 [image], see `Predictions`.
        energy: f64 [image], see `Predictions`.
        samples: thinned networks behind each row.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    energy: np.ndarray
    samples: int


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
        variances: f32 [image, class], over samples, of every class's probability; None where it is
            not known, or 0 without samples.
        others: what would be predicted without a part of the samples, for each part of them: how
            much depends on the masks that were drawn. None of a plain pass, or where nobody asked.
    """

    probabilities: np.ndarray
    deviation: np.ndarray
    expected_entropy: np.ndarray
    energy: np.ndarray
    samples: int
    variances: np.ndarray | None = None
    others: tuple[Told, ...] = ()

    @property
    def told(self) -> Told:
        """What they say of each image."""
        p, disagreement = self.probabilities, self.mutual_information
        return Told(p.argmax(1), p.max(1), self.entropy, disagreement, self.energy, self.samples)

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy f64 [image], in nats: all uncertainty there is."""
        return by_parts(entropy_of, self.probabilities)

    @property
    def mutual_information(self) -> np.ndarray:
        """f64 [image], in nats: how much the samples disagree (BALD, Houlsby et al. 2011).

        From N samples it is about 1/N of itself lower than from many: 3 % with 30.
        """
        return np.maximum(self.entropy - self.expected_entropy, 0.0)


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Shannon entropy over the last axis, in nats; 0 log 0 is 0."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -np.sum(probabilities * np.log(safe), -1)


@partial(jax.jit, static_argnames=("apply_fn", "affine", "parts"))
def sample_block(
    apply_fn: Callable[..., Any],
    affine: bool,
    parts: int,
    variables: Variables,
    key: Key,
    count: jax.Array,
    images: jax.Array,
) -> SampleSums:
    """Sums over the first `count` samples of a block of images.

    Args:
        apply_fn: the ``apply`` of a module called as ``module(images, train=bool)``.
        affine: whether to make a matrix of each thinned network's head, see `is_affine`.
        parts: of the samples, which take turns in them.
        variables: its variables, the rates to sample with among them.
        key: of all samples; sample i uses ``fold_in(key, i)``.
        count: i32 [], traced: one program serves any number.
        images: u8 or f32 [image, height, width, channel].
    """
    together, logits_of = _heads(apply_fn, variables, images, key, affine)

    def body(turn: jax.Array, sums: SampleSums) -> SampleSums:
        places = turn * together + jnp.arange(together)
        logits = logits_of(jax.vmap(jax.random.fold_in, (None, 0))(key, places))
        log_p = jax.nn.log_softmax(logits)
        # Samples beyond the last count for nothing.
        real = (places < count).astype(jnp.float32)
        own = real * (places % parts == jnp.arange(parts)[:, None])
        p = jnp.exp(log_p)
        centre = jnp.where(turn == 0, p[0], sums.centre)
        shifts = p - centre
        return SampleSums(
            centre,
            sums.shifts + jnp.tensordot(own, shifts, 1),
            sums.squares + jnp.tensordot(real, shifts * shifts, 1),
            sums.entropies - own @ jnp.sum(p * log_p, 2),
            sums.energies - own @ jax.nn.logsumexp(logits, -1),
            sums.samples + own.sum(1).astype(jnp.int32),
        )

    shape = jax.eval_shape(logits_of, key[None]).shape[1:]
    nothing = jnp.zeros(shape, jnp.float32)
    each = jnp.zeros((parts, *shape), jnp.float32)
    none = jnp.zeros(parts, jnp.int32)
    empty = SampleSums(nothing, each, nothing, each[..., 0], each[..., 0], none)
    return jax.lax.fori_loop(0, -(-count // together), body, empty)


_Heads = tuple[int, Callable[[Key], jax.Array]]
"""How many samples to compute at once, and logits f32 [sample, image, class] from keys [sample]."""


def sample_logits(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: jax.Array,
    key: Key,
    samples: int,
    affine: bool = False,
) -> jax.Array:
    """Logits f32 [sample, image, class] of every sample; arguments as for `sample_block`.

    They are those that `sample_block` sums. The number of images may be symbolic.
    """
    together, logits_of = _heads(apply_fn, variables, images, key, affine)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(samples))
    return jax.lax.map(lambda one: logits_of(one[None])[0], keys, batch_size=together)


def _heads(
    apply_fn: Callable[..., Any], variables: Variables, images: jax.Array, key: Key, affine: bool
) -> _Heads:
    """What follows the first random site of a network, after its trunk has run for all images."""
    parted = split_by_key(_thinned(apply_fn), key, variables, images[0])
    fixed, _ = parted.trunk(variables, images[0])

    def trunk(image: jax.Array) -> list[Any]:
        return parted.trunk(variables, image)[1]

    # Parts of a number that is not known yet cannot be counted.
    known = not export.is_symbolic_dim(images.shape[0])
    varying = (
        jax.lax.map(trunk, images, batch_size=BATCH_SIZE) if known else jax.vmap(trunk)(images)
    )
    if affine:
        return _by_matrices(parted, fixed, varying)
    # Several share what a layer reads of its kernel, but wide maps should stay in the cache.
    fit = _IN_CACHE // max(1, images.shape[0] * parted.width) if known else 4
    return min(4, max(1, fit)), _one_by_one(parted, fixed, varying)


def _one_by_one(parted: Parted, fixed: list[Any], varying: list[Any]) -> Callable[[Key], jax.Array]:
    of_images = jax.vmap(parted.head, (None, 0, None))
    of_samples = jax.vmap(of_images, (None, None, 0))
    return lambda keys: of_samples(fixed, varying, keys).astype(jnp.float32)


def _by_matrices(parted: Parted, fixed: list[Any], varying: list[Any]) -> _Heads:
    zeros = [jnp.zeros_like(value[0]) for value in varying]
    rows = jnp.concatenate([value.reshape(value.shape[0], -1) for value in varying], -1)

    def matrix(key: Key) -> tuple[jax.Array, jax.Array]:
        constant, parts = derivatives(parted, fixed, zeros, key)
        return constant, jnp.concatenate([part.reshape(len(constant), -1) for part in parts], -1)

    def logits_of(keys: Key) -> jax.Array:
        constants, matrices = jax.vmap(matrix)(keys)
        logits = jnp.einsum("if,scf->sic", rows, matrices) + constants[:, None]
        return logits.astype(jnp.float32)

    return 10, logits_of


def look_at(
    apply_fn: Callable[..., Any], variables: Variables, image: jax.Array
) -> tuple[bool, bool]:
    """Whether a network is random when its dropout is on, and is best sampled by matrices.

    Raises:
        RequestError: something draws from the dropout key in training that does not when sampled.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    leaves, tree = jax.tree.flatten(shapes)
    return _looked(apply_fn, tree, tuple(leaves), jax.ShapeDtypeStruct(image.shape, image.dtype))


@lru_cache(maxsize=64)
def _looked(
    apply_fn: Callable[..., Any], tree: Any, leaves: tuple[Any, ...], image: Any
) -> tuple[bool, bool]:
    """`look_at`, of shapes: it traces a network several times, which takes longer than sampling."""
    key = jax.random.key(0)
    seen: list[tuple[bool, bool]] = []

    def look(variables: Variables, image: jax.Array) -> None:
        _refuse_unsampled(apply_fn, variables, image, key)
        parted = split_by_key(_thinned(apply_fn), key, variables, image)
        fixed, varying = parted.trunk(variables, image)
        classes = jax.eval_shape(parted.head, fixed, varying, key).shape[0]
        # The matrix of a head costs some two heads for each class; it has to serve enough images.
        few = 10 * classes <= _BLOCK
        seen.append((parted.random, few and is_affine(parted, fixed, varying, key)))

    jax.eval_shape(look, jax.tree.unflatten(tree, leaves), image)
    return seen[0]


def _refuse_unsampled(
    apply_fn: Callable[..., Any], variables: Variables, image: jax.Array, key: Key
) -> None:
    """Refuse a network whose samples would lack dropout that it was trained with."""
    with recording() as trained:
        apply_fn(variables, as_float(image)[None], train=True, rngs={"dropout": key}, mutable=True)
    # Switched on around the recording, so that this sees layers as they are called.
    with dropout_on(), recording() as sampled:
        _thinned(apply_fn)(key, variables, image)
    drawn = (place for place, stream in trained.streams.items() if stream != "params")
    lost = [place or "the network" for place in drawn if place not in sampled.streams]
    if lost:
        raise RequestError(
            f"{', '.join(lost)}: drops in training only, and would silently not be sampled; use "
            "a dropout layer of Flax or of thinned, call it in evaluation, too (not inside "
            "`if train:`), and give it deterministic=not train"
        )


def _thinned(apply_fn: Callable[..., Any]) -> Callable[[Key, Any, Any], jax.Array]:
    """Logits [class] of one image by a network with its dropout on, a function of the key first."""

    def network(key: Key, variables: Variables, image: jax.Array) -> jax.Array:
        with dropout_on():
            images = as_float(image)[None]
            return apply_fn(variables, images, train=False, rngs={"dropout": key})[0]

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
        key: of all samples; sample i, the same network for all images, uses ``fold_in(key, i)``.
        samples: thinned networks, at least 1.

    Raises:
        RequestError: `samples` is below 1, or nothing in the network is random.
    """
    return sampled_in_parts(apply_fn, variables, images, key, samples, 1)[0]


def sampled_in_parts(
    apply_fn: Callable[..., Any],
    variables: Variables,
    images: Any,
    key: Key,
    samples: int,
    parts: int,
) -> list[Predictions]:
    """The same, and after it what would be predicted without each part of the samples.

    Of the latter no deviation is known (NaN). Arguments and errors as for `sample_predictions`.

    Args:
        parts: 1 for none of these; else at least 2, and at most `samples`.
    """
    if samples < 1:
        raise RequestError(f"samples is {samples}: must be at least 1")
    random, affine = look_at(apply_fn, variables, jnp.asarray(images[np.arange(1)])[0])
    if not random:
        raise RequestError("the network drops nothing: it cannot be sampled")
    block, count = min(_BLOCK if affine else BATCH_SIZE, len(images)), jnp.int32(samples)

    fixed = (apply_fn, affine, parts)
    blocks = shared_out(sample_block, fixed, (variables, key, count), images, block)
    return joined((_finished(sums, int(mask.sum())) for sums, mask in blocks), len(images))


def _finished(sums: SampleSums, rows: int) -> list[Predictions]:
    """Of the first rows: what all samples say, and without each part of them, if there are any."""
    counts = sums.samples.astype(np.int64)
    centre, squares = (np.asarray(each, np.float64)[:rows] for each in (sums.centre, sums.squares))
    shifts, entropies, energies = (
        np.asarray(each, np.float64)[:, :rows]
        for each in (sums.shifts, sums.entropies, sums.energies)
    )
    count, together = int(counts.sum()), shifts.sum(0)
    mean = _normalised(centre + together / count)
    scale = count / (count - 1) if count > 1 else 0.0
    variances = np.maximum(squares / count - (together / count) ** 2, 0) * scale
    deviation = np.sqrt(_of(variances, mean.argmax(1)[:, None]))
    entropy, energy = entropies.sum(0), energies.sum(0)
    whole = Predictions(
        mean, deviation, entropy / count, energy / count, count, variances.astype(np.float32)
    )
    unknown = np.full(rows, np.nan)
    return [whole] + [
        Predictions(
            _normalised(centre + (together - shifts[part]) / left),
            unknown,
            (entropy - entropies[part]) / left,
            (energy - energies[part]) / left,
            left,
        )
        for part, left in enumerate((count - counts).tolist())
        if len(counts) > 1
    ]


def _normalised(mean: np.ndarray) -> np.ndarray:
    return mean / mean.sum(1, keepdims=True)


def of_logits(logits: np.ndarray) -> Predictions:
    """What samples say, from their logits f32 [sample, image, class]; a plain pass is one of them.

    The variances of a single one, all 0, are left out.
    """
    wide = logits.astype(np.float64)
    # In place: of many classes, each copy is a large one. And not SciPy's logsumexp, which for one
    # image takes longer than all the rest.
    top = wide.max(2, keepdims=True)
    wide -= top
    p, count = np.exp(wide, out=wide), len(wide)
    total = p.sum(2, keepdims=True)
    p /= total
    mean = _normalised(p.mean(0))
    energy = -(top + np.log(total))[..., 0].mean(0)
    if count == 1:
        return Predictions(mean, np.zeros(len(mean)), entropy_of(mean), energy, 1)
    entropies = entropy_of(p).mean(0)
    variances = p.var(0, ddof=1)
    deviation = np.sqrt(_of(variances, mean.argmax(1)[:, None]))
    return Predictions(mean, deviation, entropies, energy, count, variances.astype(np.float32))


_Tree = TypeVar("_Tree")


def joined(parts: Iterable[_Tree], count: int) -> _Tree:
    """Predictions of several parts of the images, one after another, as they come.

    What is known of every class of many images is by far the largest, and so is held once.

    Args:
        parts: at least one; predictions, or several of the same images beside each other. Of what
            is no array [image, ...], that of the first part stays.
        count: images in all of them.
    """
    whole, done = None, 0
    for part in parts:
        if whole is None:
            whole = jax.tree.map(partial(_room, count=count), part)
        columns = [leaf for leaf in jax.tree.leaves(part) if isinstance(leaf, np.ndarray)]
        rooms = [leaf for leaf in jax.tree.leaves(whole) if isinstance(leaf, np.ndarray)]
        rows = slice(done, done + len(columns[0]))
        for room, column in zip(rooms, columns, strict=True):
            room[rows] = column
        done = rows.stop
    if whole is None:
        raise ValueError("no images")
    return whole


def _room(value: Any, count: int) -> Any:
    """An array as that of some images, for all of them; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return np.empty((count, *value.shape[1:]), value.dtype)


def averaged(members: Sequence[Predictions]) -> Predictions:
    """A deep ensemble (Lakshminarayanan et al. 2017): the mean of several networks' predictions."""
    if len(members) == 1:
        return members[0]
    mean = _mean_of(members)
    top = mean.argmax(1)[:, None]
    tops = np.stack([_of(member.probabilities, top) for member in members])
    # Spread within the networks and between them.
    deviation = np.sqrt(variance_within(members) + tops.var(0))
    entropy = np.mean([member.expected_entropy for member in members], 0)
    energy = np.mean([member.energy for member in members], 0)
    return Predictions(mean, deviation, entropy, energy, sum(m.samples for m in members))


def _mean_of(members: Sequence[Predictions]) -> np.ndarray:
    """Mean probabilities f64 [image, class], without a copy of all of them side by side."""
    total = members[0].probabilities.copy()
    for member in members[1:]:
        total += member.probabilities
    total /= len(members)
    return total


def variance_within(members: Sequence[Predictions]) -> np.ndarray:
    """Variance over samples f64 [image] of the probability of the class that the mean of all
    members predicts, averaged over members: each may predict another class itself.
    """
    top = _mean_of(members).argmax(1)[:, None]
    # Where nothing is known of the other classes, there is no sample, or the class is its own.
    variances = [
        np.square(member.deviation) if member.variances is None else _of(member.variances, top)
        for member in members
    ]
    return np.asarray(np.mean(variances, 0, dtype=np.float64))


def _of(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values [image, class] at columns [image, 1], as [image]."""
    return np.take_along_axis(values, column, 1)[:, 0]
