"""Watching a Flax module while it runs: who draws which key, and what each dropout layer does."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers
from flax.core.scope import Scope

from thinned.dropout.linen import RATES, AlphaDropout, DropConnectDense, DropoutLayer

_ARGUMENTS = ("deterministic", "rng")


@dataclass
class Visit:
    """One call of a layer that may drop something.

    Attributes:
        kind: of the layer, or the name of its class.
        shape: of its inputs.
        rate: configured; a number, an array (traced where the call is), or None without any.
        shared: whether the examples of a batch share masks by intention.
        leaf: whether it calls no other module and keeps its inputs' shape, so that it can be
            probed with inputs of ones.
    """

    kind: str
    shape: tuple[int, ...]
    rate: Any
    shared: bool
    leaf: bool = True

    @property
    def chances(self) -> int:
        """How many independent draws a call makes, at most."""
        examples = 1 if self.shared else math.prod(self.shape[:1])
        inner = {"path": (), "channel": self.shape[-1:]}.get(self.kind, self.shape[1:])
        return max(examples * math.prod(inner), 1)


@dataclass
class Recording:
    """What happened in one call of a module.

    Attributes:
        visits: site name -> `Visit`, in the order of the calls.
        keys: place -> words of all keys that were drawn there (u32), None inside a transform.
        streams: place -> the stream that really gave the key.
        gates: site name -> what the layer made of its probe.
        hidden: sites inside lifted transforms (nn.scan, nn.remat, ...), where nothing is seen ->
            configured rate, None where it is no plain number.
    """

    visits: dict[str, Visit] = field(default_factory=dict[str, Visit])
    keys: dict[str, Any] = field(default_factory=dict[str, Any])
    streams: dict[str, str] = field(default_factory=dict[str, str])
    gates: dict[str, jax.Array] = field(default_factory=dict[str, jax.Array])
    hidden: dict[str, float | None] = field(default_factory=dict[str, float | None])


@contextmanager
def recording(probe: frozenset[str] = frozenset()) -> Generator[Recording]:
    """Record what modules do inside the context.

    Args:
        probe: sites whose inputs are replaced by ones; those of alpha dropout by normal numbers.

    Yields:
        The `Recording`, filled as modules run.
    """
    recorder = _Recorder(Recording(), probe)
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


def key_words(key: Any) -> jax.Array:
    """The words of a key, typed or legacy, as u32."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


class _Recorder:
    def __init__(self, found: Recording, probe: frozenset[str]) -> None:
        self.found, self.probe = found, probe
        self.level = tracers.current_trace()
        self.active: list[str] = []
        self.counts: dict[str, int] = {}
        self.loose: list[tuple[Any, str]] = []

    def drawn(self, scope: Any, name: str, key: Any) -> None:
        place = self.active[-1] if self.active else "/".join(scope.path)
        self.found.streams[place] = name if scope.has_rng(name) else "params"
        self.loose.append((key, place))
        seen = tracers.current_trace() == self.level
        self.note(place, key_words(key) if seen else None)

    def note(self, place: str, words: Any) -> None:
        known = self.found.keys.get(place, words)
        if words is not None and known is not None and known is not words:
            words = jnp.concatenate([known.ravel(), words.ravel()])
        self.found.keys[place] = None if known is None else words

    def intercept(self, run: Any, values: Any, options: Any, context: Any) -> Any:
        layer, method = context.module, context.method_name
        if isinstance(layer, DropConnectDense) and method == "drop":
            return self._connect(run, values, options, layer)
        if method != "__call__":
            return run(*values, **options)
        if self.active and self.active[-1] in self.found.visits:
            self.found.visits[self.active[-1]].leaf = False
        name = "/".join(layer.path) or type(layer).__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        name = name if self.counts[name] == 1 else f"{name}#{self.counts[name]}"
        self.active.append(name)
        try:
            return self._call(name, run, values, options, layer)
        finally:
            self.active.pop()

    def _call(self, name: str, run: Any, values: Any, options: Any, layer: Any) -> Any:
        where = _place_of_inputs(values, options)
        if where is None or not _is_dropout(layer):
            return run(*values, **options)
        if tracers.current_trace() != self.level:
            rate = _rate(layer)
            self.found.hidden[name] = rate if isinstance(rate, int | float) else None
            return run(*values, **options)
        inputs = values[0] if values else options[where]
        connect = isinstance(layer, DropConnectDense)
        visit = Visit(_kind(layer), inputs.shape, _rate(layer), _is_shared(layer), not connect)
        self.found.visits[name] = visit
        self._note_given_key(name, layer, values, options)
        probed = name in self.probe and not connect
        if probed and values:
            values = (_probe(layer, inputs), *values[1:])
        elif probed:
            options = {**options, where: _probe(layer, inputs)}
        outputs = run(*values, **options)
        if getattr(outputs, "shape", None) != inputs.shape:
            visit.leaf = False
        if probed:
            self.found.gates[name] = outputs
        return outputs

    def _connect(self, run: Any, values: Any, options: Any, layer: DropConnectDense) -> Any:
        name = self.active[-1]
        if name in self.probe and tracers.current_trace() == self.level:
            kernel = layer.get_variable("params", "kernel").astype(values[0].dtype)
            outputs = run(jnp.ones_like(values[0]), *values[1:], **options)
            # Centred and scaled: of mean 0 and variance rate / (1 - rate), whatever the weights.
            gates = (outputs - kernel.sum(0)) / jnp.sqrt(jnp.square(kernel).sum(0))
            self.found.gates[name] = gates.reshape(-1, kernel.shape[1])
            return outputs
        return run(*values, **options)

    def _note_given_key(self, name: str, layer: Any, values: Any, options: Any) -> None:
        def argument(place: int, argument: str) -> Any:
            own = getattr(layer, argument, None)
            given = options.get(argument, values[place] if len(values) > place else None)
            return own if given is None else given

        key = argument(2, "rng")
        # A layer that is off leaves the key that it is given alone.
        if key is not None and _is_known(layer) and not argument(1, "deterministic"):
            self.found.streams[name] = self._handed_over(key)
            self.note(name, key_words(key))

    def _handed_over(self, key: Any) -> str:
        """The stream of a key that a module drew for a layer, and so not for itself."""
        places = [place for drawn, place in self.loose if drawn is key]
        if not places or sum(place == places[0] for _, place in self.loose) > 1:
            return "given"
        self.found.keys.pop(places[0], None)
        return self.found.streams.pop(places[0], "given")


def _place_of_inputs(values: Any, options: Any) -> str | None:
    """Where the float array lies that a layer is called with: a keyword, or "" in front."""
    given = {"": values[0]} if values else options
    for name, value in given.items():
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
            return name
    return None


def _is_known(layer: Any) -> bool:
    return isinstance(layer, nn.Dropout | DropoutLayer)


def _is_dropout(layer: Any) -> bool:
    return _is_known(layer) or "drop" in type(layer).__name__.lower()


def _kind(layer: Any) -> str:
    if isinstance(layer, DropoutLayer):
        return layer.kind
    return "element" if type(layer) is nn.Dropout else type(layer).__name__


def _rate(layer: Any) -> Any:
    if layer.has_variable("params", "rate_logit"):
        return jax.nn.sigmoid(layer.get_variable("params", "rate_logit"))
    if layer.has_variable(RATES, "rate"):
        return layer.get_variable(RATES, "rate")
    for name in ("rate", "drop_rate", "dropout_rate", "drop_prob", "p"):
        if isinstance(value := getattr(layer, name, None), int | float | jax.Array):
            return value
    return None


def _is_shared(layer: Any) -> bool:
    if isinstance(layer, DropConnectDense):
        return not layer.per_example
    return 0 in (getattr(layer, "broadcast_dims", None) or ())


def _probe(layer: Any, inputs: Any) -> jax.Array:
    if isinstance(layer, AlphaDropout):
        numbers = jax.random.normal(jax.random.key(0), inputs.shape)
        return ((numbers - numbers.mean()) / (numbers.std() + 1e-6)).astype(inputs.dtype)
    return jnp.ones_like(inputs)


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
