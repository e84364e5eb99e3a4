"""Thin Flax Linen shells around `thinned.dropout.functional`."""

from __future__ import annotations

import math
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
    checked_rate,
    concrete_dropout,
    drop_block,
    drop_connect,
    drop_connect_moments,
    drop_path,
    dropout,
    gaussian_dropout,
    logit_regulariser,
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
        off, rate = _is_off(self, deterministic), _rate_of(self)
        mask_shape(jnp.shape(inputs), getattr(self, "broadcast_dims", ()))
        if off or _is_plainly(0, rate):
            return inputs
        return self.drop(inputs, rate, _key_of(self, rng, rate))

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """What this kind does to `inputs`."""
        raise NotImplementedError


class Dropout(DropoutLayer):
    """`flax.linen.Dropout`, with its arguments and its very masks, cheaper on a CPU.

    Attributes:
        rate: probability of dropping (not of keeping), 0 to 1 inclusive.
        broadcast_dims: axes along which one draw is shared.
        deterministic: whether inputs pass unchanged; given here or in the call.
        rng_collection: the stream of keys to draw from.
        rng: a key to use instead of the stream's.
        bits: generator, see `thinned.dropout.bits`.
    """

    kind: ClassVar[str] = "element"
    rate: Rate
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.dropout`."""
        return dropout(inputs, rate, key, bits=self.bits, broadcast_dims=self.broadcast_dims)


class SimpleDropout(DropoutLayer):
    """What the kinds with no options of their own share.

    Attributes:
        rate, deterministic, rng_collection, rng, bits: as for `Dropout`.
    """

    rate: Rate
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"


class ChannelDropout(SimpleDropout):
    """Drops whole feature maps, see `thinned.dropout.functional.channel_dropout`."""

    kind: ClassVar[str] = "channel"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.channel_dropout`."""
        return channel_dropout(inputs, rate, key, bits=self.bits)


class DropPath(SimpleDropout):
    """Drops whole examples' branches, see `thinned.dropout.functional.drop_path`."""

    kind: ClassVar[str] = "path"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.drop_path`."""
        return drop_path(inputs, rate, key, bits=self.bits)


class DropBlock(DropoutLayer):
    """Drops square regions of feature maps, see `thinned.dropout.functional.drop_block`.

    Attributes:
        rate: average fraction dropped, 0 to 1.
        block_size: side of a block, in positions, at least 1.
        deterministic, rng_collection, rng, bits: as for `Dropout`.
    """

    kind: ClassVar[str] = "block"
    rate: Rate
    block_size: int = 7
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.drop_block`."""
        return drop_block(inputs, rate, key, block_size=self.block_size, bits=self.bits)


class GaussianDropout(SimpleDropout):
    """Multiplies by normal noise, see `thinned.dropout.functional.gaussian_dropout`."""

    kind: ClassVar[str] = "gaussian"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.gaussian_dropout`."""
        return gaussian_dropout(inputs, rate, key, bits=self.bits)


class AlphaDropout(SimpleDropout):
    """Dropout for SELU networks, see `thinned.dropout.functional.alpha_dropout`."""

    kind: ClassVar[str] = "alpha"

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """See `thinned.dropout.functional.alpha_dropout`."""
        return alpha_dropout(inputs, rate, key, bits=self.bits)


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
        deterministic, rng_collection, rng, bits: as for `Dropout`.
    """

    kind: ClassVar[str] = "concrete"
    rate: float = 0.1
    examples: int = 1
    length_scale: float = 0.01
    temperature: float = 0.1
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
        rate = checked_rate(self.rate, inputs)
        if not 0 < rate < 1:
            raise RequestError(f"a learned rate cannot start at {rate}: choose between 0 and 1")
        logit = self.param("rate_logit", lambda _: jnp.float32(math.log(rate) - math.log1p(-rate)))
        if _is_off(self, deterministic):
            return inputs
        return concrete_dropout(
            inputs,
            jax.nn.sigmoid(logit),
            _key_of(self, rng, rate),
            temperature=self.temperature,
            bits=self.bits,
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
    """A dense layer that drops its weights, see `thinned.dropout.functional.drop_connect`.

    Parameters are those of `flax.linen.Dense`: ``kernel`` [input, output] and ``bias`` [output],
    which is never dropped.

    Attributes:
        features: outputs.
        rate: probability of dropping a weight, 0 to 1 inclusive.
        activation: an elementwise function applied to the outputs, or None. When deterministic, it
            is averaged over the normal distribution that has the mean and the variance of the
            outputs over masks (Wan et al. 2013, section 3.2, who sample it; here it is taken at
            evenly spaced quantiles, so that inference is exact and the same every time).
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
        bias: Any = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else 0
        kernel, bias = kernel.astype(inputs.dtype), jnp.asarray(bias, inputs.dtype)
        activation = self.activation or (lambda values: values)
        off, rate = _is_off(self, deterministic), _rate_of(self)
        if _is_plainly(0, rate) or (off and self.activation is None):
            return activation(inputs @ kernel + bias)
        if not off:
            return activation(self.drop(inputs, rate, _key_of(self, rng, rate)) + bias)
        mean, variance = drop_connect_moments(inputs, kernel, rate)
        return expected_activation(activation, mean + bias, variance)

    def drop(self, inputs: jax.Array, rate: Rate, key: Key) -> jax.Array:
        """The product with a thinned kernel, see `thinned.dropout.functional.drop_connect`."""
        kernel = self.get_variable("params", "kernel").astype(inputs.dtype)
        return drop_connect(inputs, kernel, rate, key, per_example=self.per_example, bits=self.bits)


def expected_activation(
    activation: Callable[[jax.Array], jax.Array],
    mean: jax.Array,
    variance: jax.Array,
    points: int = 32,
) -> jax.Array:
    """The mean of `activation` over normal numbers of these moments, at evenly spaced quantiles.

    Args:
        activation: an elementwise function.
        mean, variance: float arrays of one shape, variance at least 0.
        points: how many quantiles; they are scaled to a variance of exactly 1.
    """
    quantiles = jax.scipy.special.ndtri((np.arange(points) + 0.5) / points)
    quantiles = quantiles / jnp.sqrt(jnp.mean(jnp.square(quantiles)))
    # A variance of 0 is replaced before the root, or the slope there would be NaN.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    values = [activation(mean + deviation * point.astype(mean.dtype)) for point in quantiles]
    return sum(values[1:], values[0]) / points


def _is_off(layer: DropoutLayer, given: bool | None) -> bool:
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


def _rate_of(layer: DropoutLayer) -> Rate:
    if layer.has_variable(RATES, "rate"):
        return layer.get_variable(RATES, "rate")
    rate = cast(Any, layer).rate
    # Also in evaluation, where nobody would notice it.
    return rate if isinstance(rate, jax.Array) else checked_number(rate)


def _is_plainly(end: int, rate: Rate) -> bool:
    return isinstance(rate, int | float) and rate == end


def _key_of(layer: DropoutLayer, given: Key | None, rate: Rate) -> Any:
    shell = cast(Any, layer)
    if _is_plainly(1, rate):
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
