"""The audit of Flax Linen modules."""

from __future__ import annotations

import inspect as python
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from thinned.core.errors import RequestError
from thinned.core.types import Key
from thinned.dropout.audit.checks import inspect
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.functions import Arrays, roots_of, usual_key
from thinned.dropout.audit.places import Place
from thinned.dropout.audit.subject import RATES as RATES_FOUND
from thinned.dropout.audit.subject import Subject, checked_batch, checked_draws
from thinned.dropout.audit.watch_linen import Recording, dropout_on, recording
from thinned.dropout.linen import LOSSES, RATES


def audit_linen(
    module: nn.Module,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    evaluation: nn.Module | None = None,
    variables: Mapping[str, Any] | None = None,
    rngs: Callable[[int], Mapping[str, Key]] | None = None,
    init_rngs: Key | Mapping[str, Key] | None = None,
    draws: int = 64,
    rates: Mapping[str, float] | None = None,
) -> Audit:
    """Measure what dropout does in a Flax Linen module; arguments as of `audit`."""
    _refuse_nonsense(rngs)
    checked_draws(draws)
    checked_batch(args[:1])
    training, evaluating = _modes(module, train, evaluate, evaluation)
    started = jax.random.key(0) if init_rngs is None else init_rngs
    if variables is None:
        first: Any = dict(started) if isinstance(started, Mapping) else started
        start = evaluation or module
        variables = jax.jit(lambda: start.init(first, *args, **evaluating))()
    network = _Linen(
        module, evaluation or module, training, evaluating, args, dict(variables or {})
    )
    return inspect(
        Subject(
            training=network.training,
            keys=_default_rngs if rngs is None else rngs,
            fixed=network.variables,
            data=network.args.arrays,
            evaluation=network.evaluation,
            sampled=network.sampled,
            statistics={
                f"the collection {name}": network.variables[name] for name in network.state
            },
            layers=lambda: network.found.layers,
            name=_name,
            roots=roots_of(init_rngs),
            rates=rates or {},
            draws=draws,
        )
    )


class _Linen:
    """A module's functions of (rngs, variables, arrays among its arguments)."""

    def __init__(
        self,
        module: nn.Module,
        evaluated: nn.Module,
        training: Mapping[str, Any],
        evaluating: Mapping[str, Any],
        args: tuple[Any, ...],
        variables: Mapping[str, Any],
    ) -> None:
        self.module, self.evaluated, self.variables = module, evaluated, variables
        self.modes = (training, evaluating)
        self.args = Arrays(args)
        self.state = [name for name in variables if name not in ("params", RATES, LOSSES)]
        self.found = Recording()

    def training(self, rngs: Any, variables: Any, arrays: Any) -> Any:
        with recording() as self.found:
            outputs, _ = self.module.apply(
                variables,
                *self.args.rebuilt(arrays),
                **self.modes[0],
                rngs=rngs,
                mutable=self.state,
            )
        rates = {
            path: jnp.asarray(layer.rate, jnp.float32)
            for path, layer in self.found.layers.items()
            if isinstance(layer.rate, jax.Array)
        }
        return outputs, {RATES_FOUND: rates}

    def _evaluated(self, rngs: Any, variables: Any, arrays: Any) -> Any:
        return self.evaluated.apply(
            variables, *self.args.rebuilt(arrays), **self.modes[1], rngs=rngs, mutable=self.state
        )

    def evaluation(self, rngs: Any, variables: Any, arrays: Any) -> Any:
        return self._evaluated(rngs, variables, arrays)[0]

    def sampled(self, rngs: Any, variables: Any, arrays: Any) -> Any:
        with dropout_on():
            _, after = self._evaluated(rngs, variables, arrays)
        return {f"the collection {name}": after[name] for name in self.state}


def _name(place: Place, _: str) -> str:
    """The path of the layer: what stands in front is the class of the whole network."""
    return place.path.partition("/")[2].partition(".")[0]


def _modes(
    module: nn.Module,
    train: Mapping[str, Any] | None,
    evaluate: Mapping[str, Any] | None,
    evaluation: nn.Module | None,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if train is not None and evaluate is not None:
        return train, evaluate
    if evaluation is not None:
        return train or {}, evaluate or {}
    known = python.signature(type(module).__call__).parameters
    for name, value in (("train", True), ("training", True), ("deterministic", False)):
        if name in known:
            return train or {name: value}, evaluate or {name: not value}
    raise RequestError(
        f"{type(module).__name__}.__call__ has no argument train, training or deterministic: "
        "say train={...} and evaluate={...}, or give evaluation=, the module in evaluation"
    )


def _refuse_nonsense(rngs: Any) -> None:
    if rngs is not None and not callable(rngs):
        raise RequestError("rngs must be a function of the step: lambda step: {'dropout': ...}")


def _default_rngs(step: int) -> Mapping[str, Key]:
    return {"dropout": usual_key(step)}
