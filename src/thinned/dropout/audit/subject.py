"""What an audit is of: a network as functions of keys, state and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.errors import RequestError
from thinned.dropout.audit.places import Place

KEYS, RATES = "keys", "rates"
"""What a training step may return besides its outputs: the keys of the next step, where state
carries them, and the configured rates by layer, where they are known as arrays only."""


@dataclass(frozen=True)
class Layer:
    """A layer that should drop something, as it is configured.

    Attributes:
        kind: see `thinned.dropout.sites.Kind`; empty for what the program shows.
        rate: a number, an array, or None without any.
        known: whether it is a dropout layer for certain, and not by its attributes.
        shared: whether the examples of a batch share masks by intention.
    """

    kind: str
    rate: Any
    known: bool = True
    shared: bool = False


@dataclass(frozen=True)
class Subject:
    """A network to be audited.

    Attributes:
        training: from (keys, fixed, data) to its outputs, and a dictionary that may hold what
            `KEYS` and `RATES` name.
        keys: from the step to the keys of `training`; only asked for step 0 where it returns keys.
        fixed: parameters and state, a tree of arrays.
        data: a tree of arrays with examples along the first axis.
        evaluation: the same function at prediction time, returning outputs alone; None if unknown.
        sampled: from (keys, fixed, data), with only dropout on at prediction time, to what
            `statistics` should still be; None if unknown.
        statistics: trees by name, which sampling must leave alone.
        layers: the layers that are known, by name; asked for once `training` was traced.
        name: from a place, and the path of the key argument that its noise comes from, to a name.
        roots: keys that initialisation was given, by stream.
        rates: configured rates by place, from elsewhere.
    """

    training: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]
    keys: Callable[[int], Any]
    fixed: Any
    data: Any
    evaluation: Callable[[Any, Any, Any], Any] | None = None
    sampled: Callable[[Any, Any, Any], Mapping[str, Any]] | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    layers: Callable[[], Mapping[str, Layer]] = dict
    name: Callable[[Place, str], str] = lambda place, _: place.path or place.line
    roots: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    draws: int = 64

    @property
    def batch(self) -> int:
        """Number of examples."""
        return jax.tree.leaves(self.data)[0].shape[0]


def checked_draws(draws: Any) -> int:
    """A number of steps to measure.

    Raises:
        RequestError: it is no whole number of at least 8.
    """
    if not isinstance(draws, int) or draws < 8:
        raise RequestError(f"draws is {draws!r}: must be a whole number of at least 8")
    return draws


def checked_batch(data: Any) -> None:
    """Refuse data that are no batch.

    Raises:
        RequestError: there are fewer than two examples, or arrays differ in their number.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    if not shapes or not shapes[0] or shapes[0][0] < 2:
        raise RequestError("the audit needs an example batch of at least two examples")


def key_words(key: Any) -> jax.Array:
    """The words of a key, typed or legacy, as u32."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def words_of(key: Any) -> tuple[int, ...]:
    """The same as plain numbers."""
    return tuple(np.asarray(key_words(key)).ravel().tolist())
