"""The audit of plain functions of keys and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.errors import RequestError
from thinned.core.types import Key
from thinned.dropout.audit.checks import inspect
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.subject import Subject, checked_batch, checked_draws


def audit_function(
    function: Callable[..., Any],
    keys: Any,
    *data: Any,
    batch: int | Sequence[int] = -1,
    evaluation: Callable[..., Any] | None = None,
    rates: Mapping[str, float] | None = None,
    init_keys: Mapping[str, Key] | Key | None = None,
    draws: int = 64,
    **options: Any,
) -> Audit:
    """Measure what dropout does in any function that JAX can trace, of any library or none.

    A place of dropout is an operation in which noise, that is what depends on keys alone, meets
    data. Keys are followed through ``jit``, ``scan``, ``checkpoint``, branches, functions with
    gradients of their own and ``shard_map``; a key that is written into the program counts, too.

    Args:
        function: called in training as ``function(keys, *data, **options)``; returns its outputs.
        keys: from the step to the keys, a tree, just as the training loop makes them; or such a
            tree, which is then folded with the step, and finds out less.
        data: its other arguments, trees of arrays.
        batch: which of `data` hold examples along their first axis; the others are parameters.
        evaluation: the same function at prediction time, with the same arguments.
        rates: configured drop probabilities, by the names of places in the report.
        init_keys: what initialisation was given, to see whether a key is used twice.
        draws: how many steps to measure, at least 8.
        options: handed to `function` as they are.

    Returns:
        An `Audit`: ``print`` it, or look at ``passed``, ``sites`` and ``checks``. Places are named
        by the scopes they are in, or by their line of code.

    Raises:
        RequestError: arguments make no sense, or a function cannot be traced.
    """
    if not callable(function):
        raise RequestError(f"the audit needs a function, not {type(function).__name__}")
    checked_draws(draws)
    chosen = _chosen(batch, len(data))
    checked_batch([data[place] for place in sorted(chosen)])
    fixed, examples = (
        Arrays([d for n, d in enumerate(data) if n not in chosen]),
        Arrays([data[n] for n in sorted(chosen)]),
    )

    def arguments(parameters: Any, arrays: Any) -> list[Any]:
        rest, given = iter(fixed.rebuilt(parameters)), iter(examples.rebuilt(arrays))
        return [next(given if place in chosen else rest) for place in range(len(data))]

    def training(keys: Any, parameters: Any, arrays: Any) -> Any:
        return Arrays(function(keys, *arguments(parameters, arrays), **options)).arrays, {}

    def evaluated(keys: Any, parameters: Any, arrays: Any) -> Any:
        assert evaluation is not None
        return Arrays(evaluation(keys, *arguments(parameters, arrays), **options)).arrays

    return inspect(
        Subject(
            training=training,
            keys=keys if callable(keys) else lambda step: folded(keys, step),
            fixed=fixed.arrays,
            data=examples.arrays,
            evaluation=None if evaluation is None else evaluated,
            roots=roots_of(init_keys),
            rates=rates or {},
            draws=draws,
        )
    )


class Arrays:
    """The arrays in a tree, apart from what else is in it."""

    def __init__(self, tree: Any) -> None:
        self.leaves, self.tree = jax.tree.flatten(tree)
        self.places = [n for n, leaf in enumerate(self.leaves) if is_array(leaf)]

    @property
    def arrays(self) -> list[Any]:
        """The arrays, as JAX's."""
        return [jnp.asarray(self.leaves[place]) for place in self.places]

    def rebuilt(self, arrays: Sequence[Any]) -> Any:
        """The tree with other arrays."""
        given = dict(zip(self.places, arrays, strict=True))
        mixed = [given.get(place, leaf) for place, leaf in enumerate(self.leaves)]
        return jax.tree.unflatten(self.tree, mixed)


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a tree is an array, and not a number or a function."""
    return isinstance(leaf, jax.Array | np.ndarray)


def folded(keys: Any, step: int) -> Any:
    """Keys of a step, made of one tree of keys for all."""
    return jax.tree.map(lambda key: jax.random.fold_in(key, step), keys)


def usual_key(step: int) -> Key:
    """The key of a step where no loop says how it makes them: fresh, and unlike all others."""
    return jax.random.fold_in(jax.random.key(1), step)


def roots_of(keys: Mapping[str, Key] | Key | None) -> dict[str, Key]:
    """What initialisation was given, by stream."""
    if keys is None:
        return {}
    return dict(keys) if isinstance(keys, Mapping) else {"params": keys}


def _chosen(batch: int | Sequence[int], count: int) -> set[int]:
    places = [batch] if isinstance(batch, int) else list(batch)
    if not count or not all(-count <= place < count for place in places):
        raise RequestError(f"batch is {batch!r}, but there are {count} arguments besides the keys")
    return {place % count for place in places}
