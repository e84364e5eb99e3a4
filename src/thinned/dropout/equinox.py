"""Thin Equinox layers around `thinned.dropout.functional`.

As Equinox has it, a layer takes one example, and maps have their channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from thinned.core.errors import RequestError, need
from thinned.core.types import Bits, Key
from thinned.dropout import functional
from thinned.dropout.functional import checked_number, is_plainly, start_logit
from thinned.dropout.masks import mask_shape

need("equinox", "thinned.equinox", "equinox")

import equinox as eqx  # noqa: E402


class DropoutLayer(eqx.Module):
    """What all layers here share.

    Attributes:
        rate: probability of dropping, a plain number: no array, so that nothing trains it. Inside
            a compiled step, ``eqx.tree_at`` may put a traced one in its place; its gradient is 0.
        inference: whether inputs pass unchanged; switched by ``eqx.nn.inference_mode``.
        broadcast_dims: axes of an example along which one draw is shared.
        bits: generator, see `thinned.dropout.bits`.
    """

    kind: ClassVar[str] = ""
    function: ClassVar[Callable[..., jax.Array]]
    rate: Any
    inference: bool
    broadcast_dims: tuple[int, ...] = eqx.field(static=True)
    bits: Bits = eqx.field(static=True)

    def __init__(
        self,
        rate: float = 0.5,
        inference: bool = False,
        *,
        broadcast_dims: Iterable[int] = (),
        bits: Bits = "threefry",
    ) -> None:
        """Make the layer; arguments are its attributes.

        Raises:
            RequestError: `rate` is no number from 0 to 1.
        """
        self.rate = float(checked_number(rate))
        self.inference = inference
        self.broadcast_dims = tuple(broadcast_dims)
        self.bits = bits

    def __call__(
        self, x: jax.Array, *, key: Key | None = None, inference: bool | None = None
    ) -> jax.Array:
        """One example with something dropped; unchanged at inference.

        Args:
            x: float [...]; of kinds that drop parts of maps, [channel, ...].
            key: used once; not needed at inference.
            inference: goes before the layer's own.

        Raises:
            RequestError: no key is given, or see this kind's function in
                `thinned.dropout.functional`.
        """
        mask_shape(jnp.shape(x), self.broadcast_dims)
        if self.is_off(inference) or is_plainly(0, self.rate):
            return x
        return self.drop(x, self.rate, self.checked(key))

    def is_off(self, given: bool | None) -> bool:
        """Whether inputs pass unchanged."""
        said: Any = self.inference if given is None else given
        if not isinstance(said, bool):
            raise RequestError(f"{type(self).__name__}: inference is {said!r}: must be a bool")
        return said

    def checked(self, key: Key | None) -> Any:
        """The key of a call that draws something."""
        if key is None and not is_plainly(1, self.rate):
            raise RequestError(
                f"{type(self).__name__}: no key: call it with key=, or at inference, with "
                "inference=True or after eqx.nn.inference_mode"
            )
        return key

    def options(self) -> dict[str, Any]:
        """What this kind's function takes besides inputs, rate and key."""
        return {"bits": self.bits}

    def drop(self, x: jax.Array, rate: Any, key: Key) -> jax.Array:
        """See this kind's function in `thinned.dropout.functional`."""
        axes = self.broadcast_dims
        return type(self).function(x, rate, key, broadcast_dims=axes, **self.options())


class Dropout(DropoutLayer):
    """Drops elements, see `thinned.dropout.functional.dropout`; masks of ``equinox.nn.Dropout``."""

    kind: ClassVar[str] = "element"
    function = staticmethod(functional.dropout)


class GaussianDropout(DropoutLayer):
    """Multiplies by normal noise, see `thinned.dropout.functional.gaussian_dropout`."""

    kind: ClassVar[str] = "gaussian"
    function = staticmethod(functional.gaussian_dropout)


class AlphaDropout(DropoutLayer):
    """Dropout for SELU networks, see `thinned.dropout.functional.alpha_dropout`."""

    kind: ClassVar[str] = "alpha"
    function = staticmethod(functional.alpha_dropout)


class MapLayer(DropoutLayer):
    """What the kinds share that drop parts of [channel, ...]: `functional` has channels last."""

    def drop(self, x: jax.Array, rate: Any, key: Key) -> jax.Array:
        """See this kind's function in `thinned.dropout.functional`."""
        last = x.ndim  # Of [1, ..., channel].
        axes = [axis % x.ndim or last for axis in self.broadcast_dims]
        batch = jnp.moveaxis(x, 0, -1)[None]
        found = type(self).function(batch, rate, key, broadcast_dims=axes, **self.options())
        return jnp.moveaxis(found[0], -1, 0)


class ChannelDropout(MapLayer):
    """Drops whole feature maps, see `thinned.dropout.functional.channel_dropout`."""

    kind: ClassVar[str] = "channel"
    function = staticmethod(functional.channel_dropout)


class DropBlock(MapLayer):
    """Drops square regions of feature maps, see `thinned.dropout.functional.drop_block`.

    Attributes:
        block_size: side of a block, in positions, at least 1.
    """

    kind: ClassVar[str] = "block"
    function = staticmethod(functional.drop_block)
    block_size: int = eqx.field(static=True)

    def __init__(
        self, rate: float = 0.5, inference: bool = False, *, block_size: int = 7, **options: Any
    ) -> None:
        """Make the layer; arguments are its attributes."""
        super().__init__(rate, inference, **options)
        self.block_size = block_size

    def options(self) -> dict[str, Any]:
        """What `drop_block` takes besides inputs, rate and key."""
        return super().options() | {"block_size": self.block_size}


class DropPath(DropoutLayer):
    """Drops an example's whole branch, see `thinned.dropout.functional.drop_path`.

    Attributes:
        scale_by_keep: whether survivors are scaled up, so that the mean is kept.
    """

    kind: ClassVar[str] = "path"
    function = staticmethod(functional.drop_path)
    scale_by_keep: bool = eqx.field(static=True)

    def __init__(
        self,
        rate: float = 0.5,
        inference: bool = False,
        *,
        scale_by_keep: bool = True,
        **options: Any,
    ) -> None:
        """Make the layer; arguments are its attributes."""
        super().__init__(rate, inference, **options)
        self.scale_by_keep = scale_by_keep

    def options(self) -> dict[str, Any]:
        """What `drop_path` takes besides inputs, rate and key."""
        return super().options() | {"scale_by_keep": self.scale_by_keep}

    def drop(self, x: jax.Array, rate: Any, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.drop_path`."""
        return functional.drop_path(x[None], rate, key, **self.options())[0]


class ConcreteDropout(DropoutLayer):
    """Dropout that learns its rate, see `thinned.dropout.functional.concrete_dropout`.

    Attributes:
        rate_logit: f32 [], the logit of the rate, and a parameter.
        examples: number of training examples, by which the regulariser is divided.
        length_scale: of the prior over weights, see `functional.concrete_regulariser`.
        temperature: of the masks, above 0.
    """

    kind: ClassVar[str] = "concrete"
    function = staticmethod(functional.concrete_dropout)
    rate_logit: jax.Array
    examples: int = eqx.field(static=True)
    length_scale: float = eqx.field(static=True)
    temperature: float = eqx.field(static=True)

    def __init__(
        self,
        rate: float = 0.1,
        inference: bool = False,
        *,
        examples: int = 1,
        length_scale: float = 0.01,
        temperature: float = 0.1,
        **options: Any,
    ) -> None:
        """Make the layer; `rate` is the one at the start, strictly between 0 and 1."""
        super().__init__(rate, inference, **options)
        self.rate_logit = jnp.float32(start_logit(rate))
        self.examples, self.length_scale, self.temperature = examples, length_scale, temperature

    def options(self) -> dict[str, Any]:
        """What `concrete_dropout` takes besides inputs, rate and key."""
        return super().options() | {"temperature": self.temperature}

    def drop(self, x: jax.Array, rate: Any, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.concrete_dropout`."""
        return super().drop(x, jax.nn.sigmoid(self.rate_logit), key)

    def regulariser(self, weight: jax.Array, gates: int) -> jax.Array:
        """What training has to add to its loss, f32 [].

        Args:
            weight: float [output, ...], of the layer behind this one.
            gates: elements that this layer drops independently in each example.
        """
        return functional.logit_regulariser(
            self.rate_logit, weight, gates, self.examples, self.length_scale
        )


class DropConnectDense(DropoutLayer):
    """A dense layer that drops its weights, see `thinned.dropout.functional.connected`.

    Attributes:
        weight: float [output, input], as of ``equinox.nn.Linear``.
        bias: float [output], or None.
        activation: an elementwise function applied to the outputs, or None.
    """

    kind: ClassVar[str] = "connect"
    weight: jax.Array
    bias: jax.Array | None
    activation: Callable[[jax.Array], jax.Array] | None = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float = 0.5,
        inference: bool = False,
        *,
        key: Key,
        use_bias: bool = True,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        bits: Bits = "threefry",
    ) -> None:
        """Make the layer, with the parameters of ``equinox.nn.Linear``.

        Args:
            in_features: length of the inputs.
            out_features: length of the outputs.
            rate: probability of dropping a weight.
            inference: whether weights stay.
            key: of the parameters.
            use_bias: whether outputs are shifted.
            activation: see `thinned.dropout.functional.connected`.
            bits: generator of the masks.
        """
        super().__init__(rate, inference, bits=bits)
        linear = eqx.nn.Linear(in_features, out_features, use_bias, key=key)
        self.weight, self.bias, self.activation = linear.weight, linear.bias, activation

    def __call__(
        self, x: jax.Array, *, key: Key | None = None, inference: bool | None = None
    ) -> jax.Array:
        """Outputs float [output] of one example float [input].

        Raises:
            RequestError: as of `DropoutLayer`.
        """
        off = self.is_off(inference)
        return functional.connected(
            x,
            self.weight.T,
            self.bias,
            self.rate,
            None if off or is_plainly(0, self.rate) else self.checked(key),
            off=off,
            activation=self.activation,
            bits=self.bits,
        )


class Named(eqx.Module):
    """A layer whose calls are scopes with its path.

    Attributes:
        inner: the layer.
        path: where it stands in the network.
        note: told the path in each call.
        forced: whether it does as it is, whatever a call says of ``inference``.
    """

    inner: Any
    path: str = eqx.field(static=True)
    note: Callable[[str], None] = eqx.field(static=True)
    forced: bool = eqx.field(static=True, default=False)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the layer returns."""
        self.note(self.path)
        if self.forced:
            options.pop("inference", None)
        with jax.named_scope(self.path):
            return self.inner(*args, **options)


def in_mode(model: Any, train: bool) -> Any:
    """A network as it is in training, or at inference."""
    return eqx.nn.inference_mode(model, not train)


def places(model: Any) -> dict[str, Any]:
    """The layers of a network that drop something, ours and Equinox's, by their path."""
    pairs = jax.tree_util.tree_flatten_with_path(model, is_leaf=_drops)[0]
    return {_path(path): layer for path, layer in pairs if _drops(layer)}


def replaced(model: Any, replace: Callable[[str, Any], Any]) -> Any:
    """A network with others in the place of its layers that drop something.

    Args:
        model: the network.
        replace: from path and layer to what stands there.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, node: replace(_path(path), node) if _drops(node) else node,
        model,
        is_leaf=_drops,
    )


def rate_at(layer: Any) -> float:
    """The plain rate of a layer."""
    return float(layer.rate if isinstance(layer, DropoutLayer) else layer.p)


def told(path: str, layer: Any, off: bool, rate: Any, train: bool) -> Named:
    """A layer that drops at a rate, or not; one of Equinox's keeps its own rate."""
    layer = eqx.tree_at(lambda layer: layer.inference, layer, off)
    if isinstance(layer, DropoutLayer):
        layer = eqx.tree_at(lambda layer: layer.rate, layer, rate)
    return Named(layer, path, lambda path: None, forced=not (off or train))


def with_state(make: Callable[..., Any], key: Key) -> tuple[Any, dict[str, Any]]:
    """What a class makes with a key, and the first values of its `equinox.nn.State`, by path."""
    model, state = eqx.nn.make_with_state(make)(key=key)
    return model, values_of(model, state)


def values_of(model: Any, state: Any) -> dict[str, Any]:
    """The values of an `equinox.nn.State`, by the path of what asks for them."""
    return {path: state.get(index) for path, index in _indices(model).items()}


def state_of(model: Any, values: dict[str, Any]) -> Any:
    """The `equinox.nn.State` of a model with these values, by path."""
    held = {
        path: eqx.tree_at(lambda index: index.init, index, values[path])
        for path, index in _indices(model).items()
    }
    return eqx.nn.State(held)


def batch_axis(model: Any) -> Any:
    """The name that a model's batch normalisation gives to the axis of the batch."""
    norms = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, eqx.nn.BatchNorm))
    return next((node.axis_name for node in norms if isinstance(node, eqx.nn.BatchNorm)), "batch")


def _indices(model: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex)
    )[0]
    return {_path(path): node for path, node in pairs if isinstance(node, eqx.nn.StateIndex)}


def _drops(node: Any) -> bool:
    return isinstance(node, DropoutLayer | eqx.nn.Dropout)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
