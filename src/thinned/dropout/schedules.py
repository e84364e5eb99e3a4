"""Schedules of dropout: by which factor, 0 to 1, each site's rate is multiplied at a step.

All are pure functions of the step, of numbers and arrays alike: rates travel beside the batch, so
that no schedule makes anything compile again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

Schedule = Callable[[Any], jax.Array]
"""From the step (from 0; a number or an integer array) to the factor, f32 of the same shape."""

Shape = Literal["constant", "linear", "cosine", "early", "late"]
"""The schedules by name."""


def constant() -> Schedule:
    """The full rate at every step."""
    return lambda step: jnp.ones_like(jnp.asarray(step, jnp.float32))


def linear(steps: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """From `start` to `end` in equal parts over `steps`, then `end`.

    >>> [float(linear(4)(step)) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return lambda step: start + (end - start) * _passed(step, steps)


def cosine(steps: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """From `start` to `end` along half a period of the cosine over `steps`, then `end`."""
    return lambda step: end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * _passed(step, steps)))


def early(steps: int) -> Schedule:
    """Full for the first `steps`, then off: against underfitting (Liu et al. 2023, section 5)."""
    return lambda step: (jnp.asarray(step) < steps).astype(jnp.float32)


def late(steps: int) -> Schedule:
    """Off for the first `steps`, then full (Liu et al. 2023, "Dropout reduces underfitting")."""
    return lambda step: (jnp.asarray(step) >= steps).astype(jnp.float32)


def schedule(shape: Shape, steps: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """The schedule of that name.

    Args:
        shape: its name.
        steps: how long it lasts, at least 1; unused when constant.
        start, end: factors, 0 to 1, of ``linear`` and ``cosine``.
    """
    if shape == "constant":
        return constant()
    if shape in ("linear", "cosine"):
        return (linear if shape == "linear" else cosine)(steps, start, end)
    return (early if shape == "early" else late)(steps)


def over_depth(rates: Mapping[str, float], order: Sequence[str]) -> dict[str, float]:
    """Rates that grow linearly from input to output: ``l / L`` of each site's own at site l of L.

    Huang et al. (2016), "Deep networks with stochastic depth", section 3 (eq. 4).

    Args:
        rates: by site name.
        order: the names of all sites, first the one nearest to the input.
    """
    depth = {site: index / len(order) for index, site in enumerate(order, start=1)}
    return {site: rate * depth[site] for site, rate in rates.items()}


def _passed(step: Any, steps: int) -> jax.Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
