"""Watching a Flax module while it runs: which layers it calls, and who draws from which stream."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import linen as nn
from flax.core import tracers
from flax.core.scope import Scope

from thinned.dropout.audit.subject import Layer
from thinned.dropout.linen import RATES, DropoutLayer

_ARGUMENTS = ("deterministic", "rng")
_RATES = ("rate", "drop_rate", "dropout_rate", "drop_prob", "p")


@dataclass
class Recording:
    """What happened in one call of a module.

    Attributes:
        layers: path -> layer with a rate that was called there, in the order of the calls. A rate
            may be traced where the call is; inside a transform, only plain numbers are known.
        streams: place -> the stream that really gave the key; calls of one layer are numbered.
    """

    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    streams: dict[str, str] = field(default_factory=dict[str, str])


@contextmanager
def recording() -> Generator[Recording]:
    """Record what modules do inside the context.

    Yields:
        The `Recording`, filled as modules run.
    """
    recorder = _Recorder(Recording())
    scopes: Any = Scope
    original = scopes.make_rng

    def make_rng(scope: Any, name: str = "params") -> Any:
        key = original(scope, name)
        recorder.drawn(scope, name, key)
        return key

    # Flax offers no hook for keys: for as long as the context lasts, this one is laid over it.
    scopes.make_rng = make_rng
    try:
        with nn.intercept_methods(recorder.intercept):
            yield recorder.found
    finally:
        scopes.make_rng = original


@contextmanager
def dropout_on() -> Generator[None]:
    """Dropout layers drop inside this context, though the module runs as in evaluation.

    So a network is sampled (Gal & Ghahramani 2016, "Dropout as a Bayesian approximation") while
    everything else, batch normalisation above all, stays as it is at prediction time. It reaches
    `flax.linen.Dropout` and every layer of ours that the module calls in evaluation; give a key for
    the stream ``dropout`` to ``apply``.
    """

    def intercept(run: Any, values: Any, options: Any, context: Any) -> Any:
        if _is_known(context.module) and context.method_name == "__call__":
            return _forced(run, context.module, values, options)
        return run(*values, **options)

    with nn.intercept_methods(intercept):
        yield


class _Recorder:
    def __init__(self, found: Recording) -> None:
        self.found = found
        self.level = tracers.current_trace()
        self.active: list[str] = []
        self.paths: list[str] = []
        self.counts: dict[str, int] = {}
        self.loose: list[tuple[Any, str]] = []

    def drawn(self, scope: Any, name: str, key: Any) -> None:
        place = self.active[-1] if self.active else "/".join(scope.path)
        self.found.streams[place] = name if scope.has_rng(name) else "params"
        self.loose.append((key, place))

    def intercept(self, run: Any, values: Any, options: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return run(*values, **options)
        path = "/".join(layer.path)
        self._holds(path)
        self._note(path, layer)
        name = path or type(layer).__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        name = name if self.counts[name] == 1 else f"{name}#{self.counts[name]}"
        self._note_given_key(name, layer, values, options)
        self.active.append(name)
        self.paths.append(path)
        try:
            return run(*values, **options)
        finally:
            self.active.pop()
            self.paths.pop()

    def _holds(self, path: str) -> None:
        """A layer of somebody's that calls others is no dropout layer, whatever its rate is for."""
        outer = self.paths[-1] if self.paths else path
        if (
            outer != path
            and (found := self.found.layers.get(outer)) is not None
            and not found.known
        ):
            del self.found.layers[outer]

    def _note(self, path: str, layer: Any) -> None:
        rate = _rate(layer)
        plain = isinstance(rate, int | float)
        if not plain and tracers.current_trace() != self.level:
            rate = None
        if _is_known(layer) or isinstance(layer, nn.MultiHeadDotProductAttention) or plain:
            known = _is_known(layer) or isinstance(layer, nn.MultiHeadDotProductAttention)
            self.found.layers[path] = Layer(_kind(layer), rate, known, _is_shared(layer))

    def _note_given_key(self, name: str, layer: Any, values: Any, options: Any) -> None:
        def argument(place: int, argument: str) -> Any:
            own = getattr(layer, argument, None)
            given = options.get(argument, values[place] if len(values) > place else None)
            return own if given is None else given

        key = argument(2, "rng") if _is_known(layer) else None
        # A layer that is off leaves the key that it is given alone.
        if key is not None and not argument(1, "deterministic"):
            self.found.streams[name] = self._handed_over(key)

    def _handed_over(self, key: Any) -> str:
        """The stream of a key that a module drew for a layer, and so not for itself."""
        places = [place for drawn, place in self.loose if drawn is key]
        if not places or sum(place == places[0] for _, place in self.loose) > 1:
            return "given"
        return self.found.streams.pop(places[0], "given")


def _is_known(layer: Any) -> bool:
    return isinstance(layer, nn.Dropout | DropoutLayer)


def _kind(layer: Any) -> str:
    if isinstance(layer, DropoutLayer):
        return layer.kind
    return "element" if type(layer) is nn.Dropout and not layer.broadcast_dims else ""


def _rate(layer: Any) -> Any:
    if layer.has_variable("params", "rate_logit"):
        return jax.nn.sigmoid(layer.get_variable("params", "rate_logit"))
    if layer.has_variable(RATES, "rate"):
        return layer.get_variable(RATES, "rate")
    for name in _RATES:
        if isinstance(value := getattr(layer, name, None), int | float | jax.Array):
            return value
    return None


def _is_shared(layer: Any) -> bool:
    return not getattr(layer, "per_example", True)


def _forced(run: Any, layer: Any, values: Any, options: Any) -> Any:
    """Call a layer as in training, wherever it was told that it is deterministic."""
    own = layer.deterministic
    named = dict(zip(_ARGUMENTS, values[1:], strict=False)) | options
    named.pop("deterministic", None)
    # Modules are frozen for their users; Flax itself writes to them in this way.
    object.__setattr__(layer, "deterministic", False)
    try:
        return run(*values[:1], **named)
    finally:
        object.__setattr__(layer, "deterministic", own)
