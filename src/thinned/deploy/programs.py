"""Runs as two functions of weights and images, which can be compiled, exported or called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from thinned.core.errors import RequestError
from thinned.core.rng import fixed_settings, key_for
from thinned.core.types import Variables
from thinned.dropout.sites import rates_collection
from thinned.models.apply import logits_of
from thinned.runs.run import Run
from thinned.trust.sampling import look_at, sample_logits

Weights = Mapping[str, Any]
"""Place of the run and path of the variable, as in ``0/params/Dense_0/kernel`` -> array."""


class Programs(NamedTuple):
    """What one run, or several as an ensemble, compute.

    Attributes:
        weights: of all runs.
        plain: from (weights, images u8 [image, height, width, channel]) to logits f32
            [run, image, class], with dropout off.
        sampled: from (weights, images, keys u32 [run, 2]) to logits f32 [run, sample, image,
            class]; None where there are no samples.
        keys: u32 [run, 2], those with which the runs themselves draw their samples.
        samples: thinned networks of each run.
    """

    weights: Weights
    plain: Callable[..., jax.Array]
    sampled: Callable[..., jax.Array] | None
    keys: np.ndarray
    samples: int


@fixed_settings()
def programs_of(runs: Sequence[Run], samples: int) -> Programs:
    """The functions of runs.

    Args:
        runs: with the same classes and image shape.
        samples: thinned networks of each run; 0 for none.

    Raises:
        RequestError: a run was trained without dropout, or cannot be sampled.
    """
    members = [_Member.of(run, str(place), samples) for place, run in enumerate(runs)]
    weights = {name: leaf for member in members for name, leaf in member.weights.items()}
    keys = np.stack([jax.random.key_data(key_for(run.config.seed, "sample", 0)) for run in runs])

    def plain(weights: Weights, images: jax.Array) -> jax.Array:
        return _together([member.plain(weights, images) for member in members])

    def sampled(weights: Weights, images: jax.Array, keys: jax.Array) -> jax.Array:
        pairs = zip(members, keys, strict=True)
        return _together([member.sampled(weights, images, key, samples) for member, key in pairs])

    return Programs(weights, plain, sampled if samples else None, keys, samples)


def _together(parts: list[jax.Array]) -> jax.Array:
    # Not `jnp.stack`, whose primitive is too new for converters.
    return jnp.concatenate([part[None] for part in parts])


@dataclass(frozen=True)
class _Member:
    """One run of several.

    Attributes:
        place: its part of the weights.
        apply_fn: of all its stages.
        weights: its variables by their names, the rates to sample with among them.
        affine: whether it is best sampled by matrices.
    """

    place: str
    apply_fn: Callable[..., Any]
    weights: dict[str, Any]
    affine: bool = False

    @classmethod
    def of(cls, run: Run, place: str, samples: int) -> _Member:
        state, rates = run.state, run.built.plan.full_rates
        variables = dict(state.variables)
        if samples and rates:
            variables["rates"] = rates_collection(rates)
        flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
        named = {f"{place}/{name}": jnp.asarray(leaf) for name, leaf in flat.items()}
        if not samples:
            return cls(place, state.apply_fn, named)
        image = jnp.zeros(run.facts.image_shape, jnp.uint8)
        random, affine = look_at(state.apply_fn, variables, image)
        if not random or (rates and not any(rates.values())):
            raise RequestError(
                f"{run.folder} was trained without dropout: it cannot be sampled; give --samples 0"
            )
        return cls(place, state.apply_fn, named, affine)

    def variables(self, weights: Weights) -> Variables:
        prefix = f"{self.place}/"
        own = {
            name.removeprefix(prefix): leaf
            for name, leaf in weights.items()
            if name.startswith(prefix)
        }
        return traverse_util.unflatten_dict(own, sep="/")

    def plain(self, weights: Weights, images: jax.Array) -> jax.Array:
        return logits_of(self.apply_fn, self.variables(weights), images).astype(jnp.float32)

    def sampled(
        self, weights: Weights, images: jax.Array, words: jax.Array, samples: int
    ) -> jax.Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        variables = self.variables(weights)
        return sample_logits(self.apply_fn, variables, images, key, samples, self.affine)
