"""The audit of Flax NNX modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from thinned.dropout.audit.checks import inspect
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.functions import Arrays, roots_of
from thinned.dropout.audit.places import Place
from thinned.dropout.audit.subject import KEYS, Layer, Subject, checked_batch, checked_draws

_STATE = ("key", "count", "value", "rngs")


def audit_nnx(
    model: nnx.Module,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    evaluation: nnx.Module | None = None,
    call: Callable[..., Any] | None = None,
    rngs: Callable[[int], nnx.Rngs] | None = None,
    init_rngs: Any = None,
    rates: Mapping[str, float] | None = None,
    carried: bool = True,
    draws: int = 64,
) -> Audit:
    """Measure what dropout does in an NNX module; other arguments as of `audit`.

    Args:
        model: as it is in training; nothing about it is changed.
        args: of its call, the first a batch.
        evaluation: the module at prediction time; a copy after ``eval()`` when absent.
        call: what is done with (module, *args) in place of calling it.
        rngs: from the step to what is handed to the call as ``rngs``, where that is how it is done;
            otherwise keys are the state of the module's own streams.
        init_rngs: the `nnx.Rngs` that the module was made with, or such a one.
        carried: whether the loop keeps that state from step to step, as ``nnx.jit`` does, and not
            ``jax.jit`` of a function that forgets to return it.
    """
    checked_draws(draws)
    checked_batch(args[:1])
    network = _Nnx(model, evaluation, args, (train or {}, evaluate or {}), call, rngs, carried)
    return inspect(
        Subject(
            training=network.training,
            keys=network.keys,
            fixed=network.fixed,
            data=network.args.arrays,
            evaluation=network.evaluation,
            sampled=network.sampled,
            statistics=network.statistics,
            layers=lambda: network.layers,
            name=network.name,
            roots=_roots(init_rngs),
            rates=rates or {},
            draws=draws,
        )
    )


class _Nnx:
    """A module's functions of (keys, the rest of its state, arrays among its arguments)."""

    def __init__(
        self,
        model: nnx.Module,
        evaluation: nnx.Module | None,
        args: tuple[Any, ...],
        modes: tuple[Mapping[str, Any], Mapping[str, Any]],
        call: Callable[..., Any] | None,
        rngs: Callable[[int], nnx.Rngs] | None,
        carried: bool,
    ) -> None:
        self.graph, self.own, self.fixed = nnx.split(model, nnx.RngState, ...)
        if evaluation is None:
            evaluation = nnx.clone(model)
            evaluation.eval()
        self.evaluated = nnx.split(evaluation, nnx.RngState, ...)[0]
        self.args, self.modes, self.rngs, self.carried = Arrays(args), modes, rngs, carried
        self.call = call or _called
        self.layers = _layers(model)
        if rngs is not None:
            self.stream, _ = nnx.split(rngs(0))

    def keys(self, step: int) -> Any:
        return self.own if self.rngs is None else nnx.split(self.rngs(step))[1]

    def _run(
        self, graph: Any, keys: Any, fixed: Any, arrays: Any, mode: int, prepared: Any = None
    ) -> tuple[Any, Any]:
        given = dict(self.modes[mode])
        if self.rngs is not None:
            given["rngs"], keys = nnx.merge(self.stream, keys), self.own
        model = nnx.merge(graph, keys, fixed)
        if prepared is not None:
            prepared(model)
        outputs = self.call(model, *self.args.rebuilt(arrays), **given)
        return Arrays(outputs).arrays, model

    def training(self, keys: Any, fixed: Any, arrays: Any) -> Any:
        outputs, model = self._run(self.graph, keys, fixed, arrays, 0)
        if self.rngs is not None or not self.carried:
            return outputs, {}
        return outputs, {KEYS: nnx.state(model, nnx.RngState)}

    def evaluation(self, keys: Any, fixed: Any, arrays: Any) -> Any:
        return self._run(self.evaluated, keys, fixed, arrays, 1)[0]

    def sampled(self, keys: Any, fixed: Any, arrays: Any) -> Any:
        _, model = self._run(self.evaluated, keys, fixed, arrays, 1, _dropout_on)
        return {"the batch statistics": nnx.state(model, nnx.BatchStat)}

    @property
    def statistics(self) -> dict[str, Any]:
        found = nnx.state(nnx.merge(self.graph, self.own, self.fixed), nnx.BatchStat)
        return {"the batch statistics": found} if found else {}

    def name(self, place: Place, path: str) -> str:
        """The layer whose stream the noise comes from; elsewhere the scope, or nothing."""
        parts = path.split("/") if self.rngs is None else []
        while parts and parts[-1] in _STATE:
            parts.pop()
        layer = "/".join(parts)
        return layer if layer in self.layers else place.path


def _called(model: Any, *args: Any, **options: Any) -> Any:
    return model(*args, **options)


def _dropout_on(model: nnx.Module) -> None:
    model.set_attributes(nnx.Dropout, deterministic=False, raise_if_not_found=False)


def _layers(model: nnx.Module) -> dict[str, Layer]:
    """The layers with a rate, by their path."""
    found: dict[str, Layer] = {}
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and hasattr(module, "deterministic"):
            rate = _rate(module)
            if rate is not None:
                found["/".join(map(str, path))] = Layer(_kind(module), rate)
    return found


def _rate(module: Any) -> float | None:
    learned = getattr(module, "rate_logit", None)
    if learned is not None:
        return float(jax.nn.sigmoid(learned[...]))
    rate = getattr(module, "rate", getattr(module, "dropout_rate", None))
    return None if rate is None else float(rate[...] if isinstance(rate, nnx.Variable) else rate)


def _kind(module: Any) -> str:
    plain = type(module) is nnx.Dropout and not module.broadcast_dims
    return getattr(module, "kind", "element" if plain else "")


def _roots(rngs: Any) -> dict[str, Any]:
    if isinstance(rngs, nnx.Rngs):
        return {name: stream.key[...] for name, stream in rngs.items()}
    return roots_of(rngs)
