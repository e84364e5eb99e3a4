"""The audit of Flax NNX modules."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from flax import nnx

from thinned.dropout.audit.checks import inspect
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.functions import Arrays, roots_of
from thinned.dropout.audit.places import Place
from thinned.dropout.audit.subject import KEYS, Layer, Subject, checked_batch, checked_draws

_SCOPE = "nnx:"
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
        with named(model, _SCOPE):
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
        """The layer that was called, or else the owner of the stream that the noise comes from."""
        if _SCOPE in place.path:
            return place.path.rpartition(_SCOPE)[2]
        parts = path.split("/") if self.rngs is None else []
        while parts and parts[-1] in _STATE:
            parts.pop()
        return "/".join(parts) or place.path


def _called(model: Any, *args: Any, **options: Any) -> Any:
    return model(*args, **options)


@contextmanager
def named(
    model: nnx.Module,
    prefix: str = "",
    note: Callable[[str], None] = lambda path: None,
    forced: Container[str] = (),
) -> Generator[None]:
    """Calls of a model's layers are scopes with their paths inside this context.

    NNX names nothing in a program. Copies of layers that a transform makes are not known again.

    Args:
        model: whose layers with a rate are named.
        prefix: before each name.
        note: told the path of each that is called.
        forced: paths of layers that do as they are, whatever a call says of ``deterministic``.
    """
    paths = {id(module): path for path, module in with_rate(model)}
    kinds: dict[Any, Any] = {type(module): type(module).__call__ for _, module in with_rate(model)}
    own = [kind for kind in kinds if "__call__" in vars(kind)]

    def scoped(original: Any) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            path = paths.get(id(self))
            if path is None:
                return original(self, *args, **options)
            note(path)
            if path in forced:
                options.pop("deterministic", None)
            with jax.named_scope(prefix + path):
                return original(self, *args, **options)

        return call

    try:
        for kind, original in kinds.items():
            kind.__call__ = scoped(original)
        yield
    finally:
        for kind, original in kinds.items():
            if kind in own:
                kind.__call__ = original
            else:
                del kind.__call__


def _dropout_on(model: nnx.Module) -> None:
    model.set_attributes(nnx.Dropout, deterministic=False, raise_if_not_found=False)


def _layers(model: nnx.Module) -> dict[str, Layer]:
    """The layers with a rate, by their path."""
    return {
        path: Layer(_kind(module), _rate(module), known=bool(module.deterministic))
        for path, module in with_rate(model)
    }


def with_rate(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Path and layer of whatever in a model has a rate and can be off."""
    for path, module in nnx.iter_graph(model):
        layer = isinstance(module, nnx.Module) and hasattr(module, "deterministic")
        if layer and _given(module) is not None:
            yield "/".join(map(str, path)), module


def _given(module: Any) -> Any:
    """The rate, or the logit of one that is learned, as a layer holds it, if it does."""
    for name in ("rate_logit", "rate", "dropout_rate"):
        if (found := getattr(module, name, None)) is not None:
            return found
    return None


def _rate(module: Any) -> float:
    given = _given(module)
    value = given[...] if isinstance(given, nnx.Variable) else given
    return float(jax.nn.sigmoid(value) if hasattr(module, "rate_logit") else value)


def _kind(module: Any) -> str:
    plain = type(module) is nnx.Dropout and not module.broadcast_dims
    return getattr(module, "kind", "element" if plain else "")


def _roots(rngs: Any) -> dict[str, Any]:
    if isinstance(rngs, nnx.Rngs):
        return {name: stream.key[...] for name, stream in rngs.items()}
    return roots_of(rngs)
