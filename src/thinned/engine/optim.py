"""Optimizers, with their numbers held as arrays so that one compiled step serves any value.

Which numbers an optimizer has is its `Rule`; what they are at each step is `numbers_at`, a function
of the config and the step. They travel beside the batch, like the rates of dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from thinned.core.config import Config, OptimConfig
from thinned.core.errors import RequestError

LOSS_NUMBERS = ("l1", "l2", "label_smoothing", "r_drop", "ema")
"""Numbers that the step itself uses; all others are the optimizer's."""


@dataclass(frozen=True)
class Rule:
    """What an optimizer consists of, without its numbers: equal rules share compiled steps.

    Attributes:
        name: adam, adamw or sgd.
        nesterov: for sgd.
        decays: whether weights decay.
        clips: whether gradients are clipped.
        bounded: whether weights are kept inside `max_norm`.
        factors: of the learning rate, by the outermost name of the parameters; 1 where none is.
    """

    name: str = "adam"
    nesterov: bool = False
    decays: bool = False
    clips: bool = False
    bounded: bool = False
    factors: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, optim: OptimConfig, factors: Mapping[str, float] | None = None) -> Rule:
        """The rule that a config asks for; with factors of the learning rate by name."""
        decays = optim.name == "adamw" or optim.weight_decay is not None
        clips, bounded = optim.clip is not None, optim.max_norm is not None
        by_name = tuple(sorted((factors or {}).items()))
        return cls(optim.name, optim.nesterov, decays, clips, bounded, by_name)


@cache
def optimizer(rule: Rule = Rule()) -> optax.GradientTransformation:
    """An optimizer by its rule: one object for equal rules, since a compiled step is found by it.

    Its numbers live in its state, see `with_numbers`. Adam is Kingma & Ba's (2015), AdamW
    Loshchilov & Hutter's (2019), both with Optax's defaults; momentum is as in Sutskever et al.
    (2013), in Optax's form (the rate multiplies the whole velocity).
    """
    if rule == Rule():
        return optax.inject_hyperparams(optax.adam)(learning_rate=0.001)
    projection = max_norm

    def build(
        learning_rate: Any,
        momentum: Any = None,
        weight_decay: Any = None,
        clip: Any = None,
        max_norm: Any = None,
    ) -> optax.GradientTransformation:
        chain: list[optax.GradientTransformation] = []
        if clip is not None:
            chain.append(optax.clip_by_global_norm(clip))
        if momentum is not None:
            chain.append(optax.trace(momentum, nesterov=rule.nesterov))
        else:
            chain.append(optax.scale_by_adam())
        if weight_decay is not None:
            chain.append(optax.add_decayed_weights(weight_decay, mask=_kernels))
        chain.append(optax.scale_by_learning_rate(learning_rate))
        if rule.factors:
            chain.append(_scaled(dict(rule.factors)))
        if max_norm is not None:
            chain.append(projection(max_norm))
        return optax.chain(*chain)

    # The values are replaced at every step: only which of them there are matters here.
    return optax.inject_hyperparams(build)(
        learning_rate=0.001,
        momentum=0.9 if rule.name == "sgd" else None,
        weight_decay=0.01 if rule.decays else None,
        clip=1.0 if rule.clips else None,
        max_norm=1.0 if rule.bounded else None,
    )


def adam() -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015), with Optax's defaults and step size 0.001."""
    return optimizer()


def max_norm(limit: Any) -> optax.GradientTransformationExtraArgs:
    """Keep each unit's incoming weights inside a ball, as the last transform of a chain.

    Srivastava et al. (2014), section 5.1: after a step, weights whose norm exceeds the limit are
    projected back onto the ball. Arrays of fewer than two axes (biases, scales) are left alone;
    the last axis of the others counts the units, as in Flax.

    Args:
        limit: the greatest Euclidean norm, above 0, may be traced; the paper uses 1 to 4.

    Raises:
        RequestError: `limit` is not above 0.
    """
    number = isinstance(limit, int | float | np.number)
    if not isinstance(limit, jax.Array) and not (number and limit > 0 and math.isfinite(limit)):
        raise RequestError(f"max_norm limit is {limit!r}: must be a number above 0")

    def projected(update: jax.Array, weights: jax.Array) -> jax.Array:
        if weights.ndim < 2:
            return update
        moved = weights + update
        axes = tuple(range(weights.ndim - 1))
        norms = jnp.sqrt(jnp.sum(jnp.square(moved), axes, keepdims=True))
        return moved * jnp.minimum(1.0, limit / jnp.maximum(norms, 1e-12)) - weights

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        if params is None:
            raise RequestError("max_norm needs the parameters: call update(grads, state, params)")
        return jax.tree.map(projected, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times factors by the parameters' outermost name: learning rates by depth."""

    def scaled(updates: Any, params: Any = None) -> Any:
        return {
            name: jax.tree.map(partial(jnp.multiply, factors.get(name, 1.0)), held)
            for name, held in updates.items()
        }

    return optax.stateless(scaled)


def with_numbers(opt_state: Any, numbers: Any) -> Any:
    """The state of an optimizer of this module with other numbers, by name; may be traced."""
    own = {name: jnp.asarray(numbers[name], jnp.float32) for name in numbers}
    return opt_state._replace(hyperparams={**opt_state.hyperparams, **own})


def numbers_at(config: Config, steps_per_epoch: int) -> Callable[[Any], dict[str, Any]]:
    """The numbers of optimizer and loss as a function of steps, integers [...] from 0; f32 [...].

    What is the same at every step is not computed: most runs then have nothing to compile here.
    """
    optim = config.optim
    total = steps_per_epoch * config.epochs
    fixed: dict[str, float] = {}
    courses: dict[str, Callable[[Any], Any]] = {}
    if optim.schedule == "constant" and not optim.warmup_epochs:
        fixed["learning_rate"] = config.learning_rate
    else:
        rate = _learning_rate(optim, config.learning_rate, steps_per_epoch, total)
        # Not all of Optax's schedules take arrays of steps.
        courses["learning_rate"] = jnp.vectorize(rate)
    if optim.name == "adamw" or optim.weight_decay is not None:
        fixed["weight_decay"] = 0.01 if optim.weight_decay is None else optim.weight_decay
    for name in ("clip", "max_norm", *LOSS_NUMBERS):
        if (value := getattr(optim, name)) is not None:
            fixed[name] = value
    if optim.name == "sgd":
        if optim.momentum_start is None:
            fixed["momentum"] = optim.momentum
        else:
            grown = max(round((optim.momentum_epochs or 0) * steps_per_epoch), 1)
            courses["momentum"] = optax.linear_schedule(optim.momentum_start, optim.momentum, grown)

    @jax.jit
    def moving(steps: jax.Array) -> dict[str, jax.Array]:
        steps = steps.astype(jnp.int32)
        return {
            name: jnp.broadcast_to(course(steps), steps.shape).astype(jnp.float32)
            for name, course in courses.items()
        }

    def numbers(steps: Any) -> dict[str, Any]:
        with np.errstate(over="ignore"):
            # Infinity, where f32 has no such number; a step then says what became of it.
            found = {
                name: np.full(np.shape(steps), held, np.float32) for name, held in fixed.items()
            }
        return {**found, **moving(steps)} if courses else found

    return numbers


def _learning_rate(
    optim: OptimConfig, peak: float, steps_per_epoch: int, total: int
) -> Callable[[Any], Any]:
    # Not cut at the run's end, which --epochs may yet move: what is past must not change.
    warm = round(optim.warmup_epochs * steps_per_epoch)
    rest = max(total - warm, 1)
    course: Callable[[Any], Any] = optax.constant_schedule(peak)
    if optim.schedule == "linear":
        course = optax.linear_schedule(peak, peak * optim.final, rest)
    elif optim.schedule == "cosine":
        course = optax.cosine_decay_schedule(peak, rest, optim.final)
    elif optim.schedule == "exponential":
        course = optax.exponential_decay(peak, rest, optim.final)
    elif optim.schedule == "onecycle":
        course = optax.cosine_onecycle_schedule(max(total, 2), peak)
    if not warm:
        return course

    def warmed(steps: Any) -> jax.Array:
        # The last step of the warm-up is the first one at the full rate.
        return jnp.where(steps < warm, peak * (steps + 1) / warm, course(steps - warm))

    return warmed


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
