"""Networks of the user's own, of Linen, NNX or Equinox, all as Linen modules.

What is known of Linen holds for them then: rates that come beside the batch, sites, the audit, and
samples. At the place of each layer of NNX or Equinox that drops something stands one of Linen that
is asked, before the network runs, whether to drop, at which rate and with which key.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from thinned.core.errors import RequestError
from thinned.dropout import nnx as on_nnx
from thinned.dropout.audit.nnx import named
from thinned.dropout.linen import LOSSES, DropoutLayer, is_off, rate_of

_MODES = ("train", "training", "deterministic")


def is_own(name: str) -> bool:
    """Whether a name stands for a network of the user's."""
    return ":" in name


def own(name: str, classes: int) -> nn.Module:
    """The network of a class of the user's.

    Args:
        name: MODULE:CLASS; the module may lie where one works, as for ``python -m``.
        classes: number of classes, for a class that takes ``classes`` or ``num_classes``.

    Raises:
        RequestError: there is no such class, or no network can be made of it.
    """
    kind = _found(name)
    accepted = inspect.signature(kind.__init__).parameters
    counts = [each for each in ("classes", "num_classes") if each in accepted]
    options = {counts[0]: classes} if counts else {}
    if issubclass(kind, nnx.Module):
        return NnxNetwork(partial(kind, **options), _mode(kind), _takes(kind, "rngs"))
    if not issubclass(kind, nn.Module):
        return EquinoxNetwork(partial(kind, **options), _takes(kind, "key"))
    try:
        return Adapted(kind(**options), _mode(kind))
    except TypeError as error:
        raise RequestError(
            f"--model {name} cannot be made: {error}; give every attribute but classes a default"
        ) from error


def _found(name: str) -> Any:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"--model {name}: {type(error).__name__}: {reason}") from error
    # Only where it is imported can a class be Equinox's.
    libraries = (nn, nnx, sys.modules.get("equinox"))
    if not inspect.isclass(kind) or not issubclass(
        kind, tuple(each.Module for each in libraries if each)
    ):
        raise RequestError(f"--model {name} is no Module of flax.linen, of flax.nnx or of equinox")
    return kind


def _mode(kind: Any) -> str:
    return next((mode for mode in _MODES if _takes(kind, mode)), "")


def _takes(kind: Any, argument: str) -> bool:
    return argument in inspect.signature(kind.__call__).parameters


def _told(mode: str, train: bool) -> dict[str, bool]:
    """The argument that says whether a network is trained, if it has one."""
    return {mode: train != (mode == "deterministic")} if mode else {}


class Adapted(nn.Module):
    """A Linen network of the user's, called as all others are; its variables keep their own paths.

    Attributes:
        inner: called with images, and with `mode` where that is not empty.
        mode: the name of its argument that says whether it is trained: ``train``, ``training``, or
            ``deterministic``, which means the opposite.
    """

    inner: nn.Module
    mode: str

    def setup(self) -> None:
        """Let the network live where this shell does."""
        nn.share_scope(self, self.inner)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        inner: Any = self.inner
        return inner(images, **_told(self.mode, train))


class Place(DropoutLayer):
    """Where a layer of another library drops something: asked what that has to do.

    Attributes:
        kind: of the layer; empty of one that is not ours, whose rate stays.
        rate, deterministic: as of the layer.
        features: outputs, where weights are dropped.
        per_example: whether each example has a mask of its own.
    """

    kind: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]
    rate: Any = 0.0
    deterministic: bool | None = None
    rng: Any = None
    features: int = 0
    per_example: bool = True

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None
    ) -> tuple[bool, Any, Any]:
        """Whether the layer is off, its rate, and its key: `rng`, or the stream's next."""
        off = is_off(self, deterministic)
        key = None if off else self.make_rng("dropout") if rng is None else rng
        return off, rate_of(self), key


class _Adapter(nn.Module):
    """What the networks of both libraries share."""

    def place(self, path: str, layer: Any, rate: float, train: bool) -> Place:
        """The Linen layer that stands at a path for one of another library."""
        parts = path.split("/")
        scope: Any = self.scope
        return Place(
            kind=getattr(layer, "kind", ""),
            rate=rate,
            deterministic=not train,
            features=0 if (bias := getattr(layer, "bias", None)) is None else bias.shape[0],
            per_example=getattr(layer, "per_example", True),
            parent=reduce(lambda scope, name: scope.push(name, reuse=True), parts, scope),
        )

    def keep(self, values: dict[str, dict[tuple[str, ...], Any]]) -> None:
        """Put arrays by collection and path among the variables, where they can be changed."""
        for collection, held in values.items():
            if self.is_mutable_collection(collection):
                for name, part in unflatten_dict(held).items():
                    self.put_variable(collection, name, part)

    def held(self) -> Any:
        """All variables, by collection and path."""
        held: Any = self.variables
        return flatten_dict(unfreeze(held))

    def add(self, loss: Any) -> None:
        """Let training add a term to its loss."""
        if not self.is_initializing():
            self.sow(LOSSES, "own", loss)


class NnxNetwork(_Adapter):
    """An NNX network of the user's.

    Parameters are the collection ``params``, batch statistics ``batch_stats``, all other variables
    but rates, losses and the state of streams ``state``.

    Attributes:
        make: makes the module, with ``rngs``.
        mode: the name of an argument of its call that says whether it is trained, or empty.
        streams: whether its call takes ``rngs``.
    """

    make: Callable[..., Any]
    mode: str = ""
    streams: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        graph, abstract, rates = _drafted_nnx(self.make)
        # A copy: merged variables are those of the state, and the draft is kept.
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, abstract))
        if self.is_initializing():
            self.keep(_by_collection(self.make(rngs=nnx.Rngs(self.make_rng("params")))))
        held, blank = self.held(), jax.random.key(0)
        for path, variable in _variables(model):
            shape = variable.get_raw_value().shape
            place = (_collection(variable), *path)
            if place in held:
                variable.set_raw_value(held[place])
            elif isinstance(variable, nnx.RngKey):
                variable.set_raw_value(jax.random.split(blank, shape) if shape else blank)
            else:
                rate = rates.get("/".join(path[:-1]), 0.0)
                variable.set_raw_value(jnp.full(shape, rate, variable.get_raw_value().dtype))
        (model.train if train else model.eval)()
        whole = [model, nnx.Rngs(dropout=blank)] if self.streams else [model]
        forced = self._ask(whole, images, rates, train)
        with named(model, forced=forced):
            logits = self._run(whole, images, train)
        if not self.is_initializing():
            changed = _by_collection(model)
            self.keep({name: part for name, part in changed.items() if name != "params"})
        if losses := [v[...] for _, v in _variables(model) if isinstance(v, on_nnx.Loss)]:
            self.add(sum(losses))
        return logits

    def _run(self, whole: list[Any], images: jax.Array, train: bool) -> jax.Array:
        model, *rngs = whole
        given = {"rngs": rngs[0]} if rngs else {}
        return model(images, **given, **_told(self.mode, train))

    def _ask(self, whole: list[Any], images: jax.Array, rates: Any, train: bool) -> set[str]:
        """Tell what to do each layer that will be called and each stream that is drawn from.

        Returns:
            The layers that drop though the network is called as in evaluation.
        """
        forced = set[str]()
        run = partial(self._run, images=images, train=train)
        streams = _streams(whole)
        for path, layer in _called(whole, run):
            if path not in rates:
                continue
            off, rate, key = self.place(path, layer, rates[path], train)(images)
            layer.deterministic = off
            if not (off or train):
                forced.add(path)
            if isinstance(layer.rate, on_nnx.Rate):
                layer.rate[...] = jnp.asarray(rate, jnp.float32)
            if key is not None and layer.rngs is not None:
                on_nnx.set_key(layer.rngs, key)
                streams = {at: each for at, each in streams.items() if each is not layer.rngs}
        used = _drawn_from(whole, run) & streams.keys() if streams else set[str]()
        if used and self.has_rng("dropout"):
            root = self.make_rng("dropout")
            for path in used:
                on_nnx.set_key(streams[path], on_nnx.key_at(root, [path]))
        return forced


@cache
def _drafted_nnx(make: Callable[..., Any]) -> tuple[Any, Any, dict[str, float]]:
    """Structure of what a class makes, shapes of its state, and the rates of its layers by path."""
    found: list[Any] = []

    def build() -> Any:
        model = make(rngs=nnx.Rngs(0))
        layers = {path: _rate(layer) for path, layer in _layers(model)}
        graph, state = nnx.split(model)
        found.extend((graph, {path: rate for path, rate in layers.items() if rate is not None}))
        return state

    state = jax.eval_shape(build)
    return found[0], state, found[1]


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for path, layer in nnx.iter_graph(model):
        if isinstance(layer, nnx.Dropout):
            yield "/".join(map(str, path)), layer


def _rate(layer: Any) -> float | None:
    """The plain rate of a layer; None where it stands for a stack of them, as in a scan."""
    rate = getattr(layer, "start", layer.rate)
    if not isinstance(rate, nnx.Variable):
        return float(rate)
    return None if rate.get_raw_value().shape else float(rate.get_raw_value())


def _variables(model: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable):
            yield tuple(map(str, path)), node


def _collection(variable: Any) -> str:
    stacked = isinstance(variable, on_nnx.Rate) and variable.get_raw_value().shape
    if isinstance(variable, nnx.RngState | on_nnx.Rate | on_nnx.Loss) and not stacked:
        return ""
    if isinstance(variable, nnx.Param):
        return "params"
    return "batch_stats" if isinstance(variable, nnx.BatchStat) else "state"


def _by_collection(model: Any) -> dict[str, dict[tuple[str, ...], Any]]:
    found: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, variable in _variables(model):
        if collection := _collection(variable):
            found.setdefault(collection, {})[path] = variable.get_raw_value()
    return found


def _streams(whole: list[Any]) -> dict[str, nnx.RngStream]:
    return {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(whole)
        if isinstance(node, nnx.RngStream)
    }


def _called(whole: list[Any], run: Callable[[list[Any]], Any]) -> Iterator[tuple[str, Any]]:
    """The layers that drop and that a call passes, in their order."""
    called: list[str] = []

    def watched(whole: list[Any]) -> Any:
        with named(whole[0], note=called.append):
            return run(whole)

    _traced(whole, watched)
    layers = dict(_layers(whole[0]))
    return ((path, layers[path]) for path in dict.fromkeys(called) if path in layers)


def _drawn_from(whole: list[Any], run: Callable[[list[Any]], Any]) -> set[str]:
    """The streams that a call draws from: their counts are others afterwards."""
    drawn: set[str] = set()

    def watched(whole: list[Any]) -> Any:
        before = {path: each.count.get_raw_value() for path, each in _streams(whole).items()}
        logits = run(whole)
        after = _streams(whole)
        drawn.update(
            p for p, count in before.items() if after[p].count.get_raw_value() is not count
        )
        return logits

    _traced(whole, watched)
    return drawn


def _traced(whole: list[Any], function: Callable[[list[Any]], Any]) -> None:
    """Run a function of a copy, for what it notes on the way."""
    graph, state = nnx.split(whole)
    jax.eval_shape(lambda state: function(nnx.merge(graph, state)), state)


class EquinoxNetwork(_Adapter):
    """An Equinox network of the user's, called with one image [channel, height, width] at a time.

    Its floating point arrays are the collection ``params``, other arrays ``state``. One with an
    ``equinox.nn.State``, which is the collection ``batch_stats``, is called with image and state,
    and returns logits and state. What its method ``losses()`` returns, if it has one, training adds
    to its loss.

    Attributes:
        make: makes the module, with ``key``.
        keyed: whether its call takes ``key``.
    """

    make: Callable[..., Any]
    keyed: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel].

        Raises:
            RequestError: the network learns a rate and does not tell its term of the loss.
        """
        from thinned.dropout import equinox as on_equinox

        draft, state = _drafted_equinox(self.make)
        if self.is_initializing():
            made, first = on_equinox.with_state(self.make, self.make_rng("params"))
            self.keep(_arrays_by_collection(made, first))
        held, blank = self.held(), jax.random.key(0)
        model: Any = _filled(draft, held, "")
        state = {path: _filled(value, held, "batch_stats", path) for path, value in state.items()}
        model = on_equinox.in_mode(model, train)
        called: list[str] = []
        noting = on_equinox.replaced(
            model, lambda path, layer: on_equinox.Named(layer, path, called.append)
        )
        jax.eval_shape(lambda images: self._run(noting, images, blank, state), images)
        asked: dict[str, tuple[bool, Any, Any]] = {}
        layers = on_equinox.places(model)
        for path in dict.fromkeys(called):
            place = self.place(path, layers[path], on_equinox.rate_at(layers[path]), train)
            asked[path] = place(images, rng=blank)
        drops = train or not all(off for off, _, _ in asked.values())
        root = self.make_rng("dropout") if drops and self.keyed else blank
        if getattr(model, "losses", None) is not None:
            self.add(model.losses())
        elif any(getattr(layer, "kind", "") == "concrete" for layer in layers.values()):
            raise RequestError(
                f"{type(model).__name__} learns a rate: give it a method losses() that returns the "
                "sum of its regulariser(weight, gates), or training would drive the rate to 0"
            )
        told = on_equinox.replaced(
            model,
            lambda path, layer: (
                on_equinox.told(path, layer, *asked[path][:2], train) if path in asked else layer
            ),
        )
        logits, state = self._run(told, images, root, state)
        if not self.is_initializing():
            self.keep(_arrays_by_collection(None, state))
        return logits

    def _run(self, model: Any, images: jax.Array, key: Any, state: Any) -> tuple[jax.Array, Any]:
        """Logits [batch, class], and the values of the state, by path, after them."""
        from thinned.dropout import equinox as on_equinox

        def one(image: jax.Array, key: Any, state: Any) -> Any:
            options = {"key": key} if self.keyed else {}
            image = jnp.moveaxis(image, -1, 0)
            if not state:
                return model(image, **options), state
            logits, after = model(image, on_equinox.state_of(model, state), **options)
            return logits, on_equinox.values_of(model, after)

        axis = on_equinox.batch_axis(model)
        mapped = jax.vmap(one, (0, 0, None), (0, None), axis_name=axis)
        return mapped(images, jax.random.split(key, images.shape[0]), state)


@cache
def _drafted_equinox(make: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """What a class makes, and the values of its state by path, with shapes for arrays."""
    import equinox as eqx

    from thinned.dropout import equinox as on_equinox

    return eqx.filter_eval_shape(partial(on_equinox.with_state, make), jax.random.key(0))


def _filled(draft: Any, held: Any, collection: str, *inside: str) -> Any:
    """A draft with what is held in the place of shapes; in that collection, or in each leaf's."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: held.get(
            (collection or _collection_of(leaf), *_parts(inside, path)), leaf
        ),
        draft,
    )


def _arrays_by_collection(model: Any, state: Any) -> dict[str, dict[tuple[str, ...], Any]]:
    found: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if collection := _collection_of(leaf):
            found.setdefault(collection, {})[_parts((), path)] = leaf
    for place, value in state.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            found.setdefault("batch_stats", {})[_parts((place,), path)] = leaf
    return found


def _collection_of(leaf: Any) -> str:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return ""
    return "params" if jnp.issubdtype(leaf.dtype, jnp.inexact) else "state"


def _parts(inside: tuple[str, ...], path: Any) -> tuple[str, ...]:
    inner = jax.tree_util.keystr(path, simple=True, separator="/")
    return tuple("/".join((*inside, *((inner,) if path else ()))).split("/"))
