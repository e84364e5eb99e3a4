"""Thin Flax Linen shells around `thinned.dropout.functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from thinned.core.errors import RequestError
from thinned.core.types import Bits, Key
from thinned.dropout.functional import (
    Rate,
    alpha_dropout,
    channel_dropout,
    checked_number,
    concrete_dropout,
    connected,
    drop_block,
    drop_path,
    dropout,
    gaussian_dropout,
    is_plainly,
    logit_regulariser,
    start_logit,
)
from thinned.dropout.masks import mask_shape

RATES = "rates"
"""The variable collection through which rates come beside the batch; `init` never creates it."""

LOSSES = "losses"
"""The variable collection into which layers sow terms that training adds to its loss."""


class DropoutLayer(nn.Module):
    """What all layers here share; each has the attributes `rate`, `deterministic` and so on.

    When the module is applied with a collection ``rates`` that has an entry for this layer (see
    `thinned.dropout.sites.rates_collection`), the rate is taken from there and may be traced;
    otherwise it is the attribute's.
    """

    kind: ClassVar[str] = ""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Key | None = None
    ) -> jax.Array:
        """Inputs float [...] with something dropped; unchanged when deterministic.

        Raises:
            RequestError: `deterministic` is given nowhere or twice, or see this kind's function in
                `thinned.dropout.functional`.
        """
        off, rate = is_off(self, deterministic), rate_of(self)
        mask_shape(jnp.shape(inputs), getattr(self, "broadcast_dims", ()))
        if off or is_plainly(0, rate):
            return inputs
        return self.drop(inputs, rate, _key_of(self, rng, rate))

    @nn.nowrap
    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """What this kind does to `inputs`."""
        raise NotImplementedError


class SimpleDropout(DropoutLayer):
    """What the kinds share that drop activations at a rate that is given.

    Attributes:
        rate: probability of dropping (not of keeping), 0 to 1 inclusive.
        broadcast_dims: axes along which one draw is shared (besides those of the kind).
        deterministic: whether inputs pass unchanged; given here or in the call.
        rng_collection: the stream of keys to draw from.
        rng: a key to use instead of the stream's.
        bits: generator, see `thinned.dropout.bits`.
    """

    function: ClassVar[Callable[..., jax.Array]]
    rate: Rate
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    @nn.nowrap
    def options(self) -> dict[str, Any]:
        """What this kind's function takes besides inputs, rate and key."""
        return {"bits": self.bits, "broadcast_dims": self.broadcast_dims}

    @nn.nowrap
    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See this kind's function in `thinned.dropout.functional`."""
        return type(self).function(inputs, rate, key, **self.options())


class Dropout(SimpleDropout):
    """`flax.linen.Dropout`, with its arguments and its very masks, cheaper on a CPU.

    Attributes:
        rate, broadcast_dims, deterministic, rng_collection, rng, bits: see `SimpleDropout`.
    """

    kind: ClassVar[str] = "element"
    function = staticmethod(dropout)


class ChannelDropout(SimpleDropout):
    """Drops whole feature maps, see `thinned.dropout.functional.channel_dropout`."""

    kind: ClassVar[str] = "channel"
    function = staticmethod(channel_dropout)


class DropPath(SimpleDropout):
    """Drops whole examples' branches, see `thinned.dropout.functional.drop_path`.

    Attributes:
        rate, broadcast_dims, deterministic, rng_collection, rng, bits: see `SimpleDropout`.
        scale_by_keep: whether survivors are scaled up, so that the mean is kept.
    """

    kind: ClassVar[str] = "path"
    function = staticmethod(drop_path)
    scale_by_keep: bool = True

    @nn.nowrap
    def options(self) -> dict[str, Any]:
        """What `drop_path` takes besides inputs, rate and key."""
        return super().options() | {"scale_by_keep": self.scale_by_keep}


class DropBlock(SimpleDropout):
    """Drops square regions of feature maps, see `thinned.dropout.functional.drop_block`.

    Attributes:
        rate: average fraction dropped, 0 to 1.
        broadcast_dims, deterministic, rng_collection, rng, bits: see `SimpleDropout`.
        block_size: side of a block, in positions, at least 1.
    """

    kind: ClassVar[str] = "block"
    function = staticmethod(drop_block)
    block_size: int = 7

    @nn.nowrap
    def options(self) -> dict[str, Any]:
        """What `drop_block` takes besides inputs, rate and key."""
        return super().options() | {"block_size": self.block_size}


class GaussianDropout(SimpleDropout):
    """Multiplies by normal noise, see `thinned.dropout.functional.gaussian_dropout`."""

    kind: ClassVar[str] = "gaussian"
    function = staticmethod(gaussian_dropout)


class AlphaDropout(SimpleDropout):
    """Dropout for SELU networks, see `thinned.dropout.functional.alpha_dropout`."""

    kind: ClassVar[str] = "alpha"
    function = staticmethod(alpha_dropout)


class ConcreteDropout(DropoutLayer):
    """Dropout that learns its rate, see `thinned.dropout.functional.concrete_dropout`.

    The parameter ``rate_logit`` f32 [] is the logit of the rate. `regularise` sows the term that
    keeps it in place into the collection ``losses``; without that term a rate learns whatever fits
    the training data, which tends to be 0.

    Attributes:
        rate: the rate at the start, strictly between 0 and 1.
        examples: number of training examples, by which the regulariser is divided.
        length_scale: of the prior over weights, see `functional.concrete_regulariser`.
        temperature: of the masks, above 0.
        broadcast_dims, deterministic, rng_collection, rng, bits: as for `Dropout`.
    """

    kind: ClassVar[str] = "concrete"
    rate: float = 0.1
    examples: int = 1
    length_scale: float = 0.01
    temperature: float = 0.1
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Key | None = None
    ) -> jax.Array:
        """Inputs float [...] with elements dropped softly; unchanged when deterministic.

        Raises:
            RequestError: as `DropoutLayer`, or the rate at the start is 0 or 1, from where no
                gradient leads away.
        """
        start = start_logit(self.rate)
        logit = self.param("rate_logit", lambda _: jnp.float32(start))
        if is_off(self, deterministic):
            return inputs
        return concrete_dropout(
            inputs,
            jax.nn.sigmoid(logit),
            _key_of(self, rng, self.rate),
            temperature=self.temperature,
            bits=self.bits,
            broadcast_dims=self.broadcast_dims,
        )

    def regularise(self, kernel: jax.Array, gates: int) -> None:
        """Sow the regulariser into ``losses``; nothing happens where that cannot be changed.

        Args:
            kernel: float [..., output], the weights of the layer behind this one.
            gates: elements that this layer drops independently in each example.
        """
        if not self.is_initializing() and self.is_mutable_collection(LOSSES):
            logit = self.get_variable("params", "rate_logit")
            term = logit_regulariser(logit, kernel, gates, self.examples, self.length_scale)
            self.sow(LOSSES, "concrete", term)


class DropConnectDense(DropoutLayer):
    """A dense layer that drops its weights, see `thinned.dropout.functional.connected`.

    Parameters are those of `flax.linen.Dense`: ``kernel`` [input, output] and ``bias`` [output],
    which is never dropped.

    Attributes:
        features: outputs.
        rate: probability of dropping a weight, 0 to 1 inclusive.
        activation: an elementwise function applied to the outputs, or None; see
            `thinned.dropout.functional.connected` for what it is when deterministic.
        per_example: whether each example has a mask of its own, see `drop_connect`.
        use_bias, kernel_init, bias_init: as for `flax.linen.Dense`.
        deterministic, rng_collection, rng, bits: as for `Dropout`.
    """

    kind: ClassVar[str] = "connect"
    features: int
    rate: Rate
    activation: Callable[[jax.Array], jax.Array] | None = None
    per_example: bool = True
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Key | None = None
    ) -> jax.Array:
        """Outputs float [..., features] of inputs float [..., input].

        Raises:
            RequestError: as `DropoutLayer`.
        """
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        off, rate = is_off(self, deterministic), rate_of(self)
        return connected(
            inputs,
            kernel,
            bias,
            rate,
            None if off or is_plainly(0, rate) else _key_of(self, rng, rate),
            off=off,
            activation=self.activation,
            per_example=self.per_example,
            bits=self.bits,
        )


def is_off(layer: DropoutLayer, given: bool | None) -> bool:
    """Whether inputs pass a layer unchanged, as said by its attribute or in its call.

    Raises:
        RequestError: it is said nowhere or twice, or with something that is no bool.
    """
    own = cast(Any, layer).deterministic
    if (own is None) == (given is None):
        times = "nowhere" if given is None else "twice"
        raise RequestError(
            f"{_name(layer)}: deterministic is given {times}: say once, as attribute or in the "
            "call, whether dropout is off"
        )
    said: Any = given if own is None else own
    if not isinstance(said, bool | int | np.bool_ | jax.Array):
        raise RequestError(f"{_name(layer)}: deterministic is {said!r}: must be True or False")
    return bool(said)


def _name(layer: DropoutLayer) -> str:
    return "/".join(layer.path) or type(layer).__name__


def rate_of(layer: DropoutLayer) -> Rate:
    """The rate of a layer: of the collection ``rates``, or else its own."""
    if layer.has_variable(RATES, "rate"):
        return layer.get_variable(RATES, "rate")
    rate = cast(Any, layer).rate
    # Also in evaluation, where nobody would notice it.
    return rate if isinstance(rate, jax.Array) else checked_number(rate)


def _key_of(layer: DropoutLayer, given: Key | None, rate: Rate) -> Any:
    shell = cast(Any, layer)
    if is_plainly(1, rate):
        return None  # Nothing is drawn, and so none is asked for.
    if given is not None or shell.rng is not None:
        return shell.rng if given is None else given
    stream = shell.rng_collection
    # A network may be initialised with one key for everything; trained with it, it may not be.
    if not (layer.is_initializing() or layer.has_rng(stream)) and layer.has_rng("params"):
        raise RequestError(
            f"{_name(layer)}: no key for the stream {stream}, only for params: "
            f"pass rngs={{'{stream}': key}}"
        )
    return shell.make_rng(stream)
