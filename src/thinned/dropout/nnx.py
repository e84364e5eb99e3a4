"""Thin Flax NNX layers around `thinned.dropout.functional`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from thinned.core.errors import RequestError
from thinned.core.types import Bits, Key
from thinned.dropout import functional
from thinned.dropout.bits import realised_keep
from thinned.dropout.functional import checked_number, is_plainly, start_logit
from thinned.dropout.masks import mask_shape

Source = nnx.Rngs | nnx.RngStream | jax.Array
"""Where a layer takes its key from: streams by their names, one stream, or the key itself."""

_KERNEL, _BIAS = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
_MASKED = ("element", "channel", "path", "alpha", "connect")


class Rate(nnx.Variable[Any]):
    """A drop probability f32 [].

    ``nnx.split(model, Rate, ...)`` makes the rates of a model an argument, so that one compiled
    step takes any; no filter of `nnx.Param` finds them.
    """


class Loss(nnx.Variable[Any]):
    """A term f32 [] that training adds to its loss; ``nnx.state(model, Loss)`` has all of them."""


class DropoutLayer(nnx.Dropout):
    """What all layers here share: the arguments of `flax.nnx.Dropout`, and `bits`."""

    kind: ClassVar[str] = ""
    function: ClassVar[Callable[..., jax.Array]]

    def __init__(
        self,
        rate: Any,
        *,
        broadcast_dims: Iterable[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        bits: Bits = "threefry",
    ) -> None:
        """Make the layer.

        Args:
            rate: probability of dropping (not of keeping), 0 to 1 inclusive; kept as a `Rate`.
            broadcast_dims: axes along which one draw is shared (besides those of the kind).
            deterministic: whether inputs pass unchanged; switched by ``train()`` and ``eval()``.
            rng_collection: the stream of keys to draw from.
            rngs: streams, of which the layer forks its own; or None, to give some in each call.
            bits: generator, see `thinned.dropout.bits`.

        Raises:
            RequestError: `rate` is no number from 0 to 1.
        """
        super().__init__(
            _kept(rate, type(self).kind, bits),
            broadcast_dims=tuple(broadcast_dims),
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=rngs,
        )
        self.bits: Bits = bits

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Source | None = None
    ) -> jax.Array:
        """Inputs float [...] with something dropped; unchanged when deterministic.

        Args:
            inputs: what is dropped from.
            deterministic: goes before the layer's own.
            rngs: goes before the layer's own.

        Raises:
            RequestError: `deterministic` or a key is given nowhere, or see this kind's function in
                `thinned.dropout.functional`.
        """
        mask_shape(jnp.shape(inputs), self.broadcast_dims)
        off, rate = self.is_off(deterministic), self.chance
        if off or is_plainly(0, rate):
            return inputs
        return self.drop(inputs, rate, None if is_plainly(1, rate) else self.key(rngs))

    @property
    def chance(self) -> Any:
        """The rate as of now: a plain number where that is known, else f32 [], traced."""
        given: Any = self.rate
        rate = given[...] if isinstance(given, nnx.Variable) else given
        return rate if isinstance(rate, Tracer) else checked_number(float(rate))

    def is_off(self, given: bool | None) -> bool:
        """Whether inputs pass unchanged."""
        said: Any = self.deterministic if given is None else given
        if said is None:
            raise RequestError(
                f"{type(self).__name__}: deterministic is given nowhere: say as argument of the "
                "layer or of its call, or by train() and eval(), whether dropout is off"
            )
        if not isinstance(said, bool | np.bool_):
            raise RequestError(
                f"{type(self).__name__}: deterministic is {said!r}: must be True or False"
            )
        return bool(said)

    def key(self, given: Source | None) -> Key:
        """The next key of the stream that a call has to take it from."""
        source: Any = self.rngs if given is None else given
        if source is None:
            raise RequestError(
                f"{type(self).__name__}: no key: give rngs= to the layer or to its call"
            )
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        return source() if isinstance(source, nnx.RngStream) else source

    def options(self) -> dict[str, Any]:
        """What this kind's function takes besides inputs, rate and key."""
        return {"bits": self.bits, "broadcast_dims": self.broadcast_dims}

    def drop(self, inputs: jax.Array, rate: Any, key: Any) -> jax.Array:
        """See this kind's function in `thinned.dropout.functional`."""
        return type(self).function(inputs, rate, key, **self.options())


class Dropout(DropoutLayer):
    """`flax.nnx.Dropout`, with its arguments and its very masks, cheaper on a CPU."""

    kind: ClassVar[str] = "element"
    function = staticmethod(functional.dropout)


class ChannelDropout(DropoutLayer):
    """Drops whole feature maps, see `thinned.dropout.functional.channel_dropout`."""

    kind: ClassVar[str] = "channel"
    function = staticmethod(functional.channel_dropout)


class DropPath(DropoutLayer):
    """Drops whole examples' branches, see `thinned.dropout.functional.drop_path`."""

    kind: ClassVar[str] = "path"
    function = staticmethod(functional.drop_path)

    def __init__(self, rate: Any, *, scale_by_keep: bool = True, **options: Any) -> None:
        """Make the layer.

        Args:
            rate: probability of dropping.
            scale_by_keep: whether survivors are scaled up, so that the mean is kept.
            options: as of `DropoutLayer`.
        """
        super().__init__(rate, **options)
        self.scale_by_keep = scale_by_keep

    def options(self) -> dict[str, Any]:
        """What `drop_path` takes besides inputs, rate and key."""
        return super().options() | {"scale_by_keep": self.scale_by_keep}


class DropBlock(DropoutLayer):
    """Drops square regions of feature maps, see `thinned.dropout.functional.drop_block`."""

    kind: ClassVar[str] = "block"
    function = staticmethod(functional.drop_block)

    def __init__(self, rate: Any, *, block_size: int = 7, **options: Any) -> None:
        """Make the layer.

        Args:
            rate: average fraction dropped.
            block_size: side of a block, in positions, at least 1.
            options: as of `DropoutLayer`.
        """
        super().__init__(rate, **options)
        self.block_size = block_size

    def options(self) -> dict[str, Any]:
        """What `drop_block` takes besides inputs, rate and key."""
        return super().options() | {"block_size": self.block_size}


class GaussianDropout(DropoutLayer):
    """Multiplies by normal noise, see `thinned.dropout.functional.gaussian_dropout`."""

    kind: ClassVar[str] = "gaussian"
    function = staticmethod(functional.gaussian_dropout)


class AlphaDropout(DropoutLayer):
    """Dropout for SELU networks, see `thinned.dropout.functional.alpha_dropout`."""

    kind: ClassVar[str] = "alpha"
    function = staticmethod(functional.alpha_dropout)


class ConcreteDropout(DropoutLayer):
    """Dropout that learns its rate, see `thinned.dropout.functional.concrete_dropout`.

    The parameter ``rate_logit`` f32 [] is the logit of the rate; `regularise` leaves the term that
    keeps it in place in the `Loss` ``penalty``.
    """

    kind: ClassVar[str] = "concrete"
    function = staticmethod(functional.concrete_dropout)

    def __init__(
        self,
        rate: float = 0.1,
        *,
        examples: int = 1,
        length_scale: float = 0.01,
        temperature: float = 0.1,
        **options: Any,
    ) -> None:
        """Make the layer.

        Args:
            rate: at the start, strictly between 0 and 1.
            examples: number of training examples, by which the regulariser is divided.
            length_scale: of the prior over weights, see `functional.concrete_regulariser`.
            temperature: of the masks, above 0.
            options: as of `DropoutLayer`.

        Raises:
            RequestError: the rate at the start is 0 or 1, from where no gradient leads away.
        """
        self.rate_logit = nnx.Param(jnp.float32(start_logit(rate)))
        self.start = float(rate)
        super().__init__(None, **options)
        self.penalty = Loss(jnp.float32(0))
        self.examples, self.length_scale, self.temperature = examples, length_scale, temperature

    @property
    def chance(self) -> jax.Array:
        """The rate as of now, f32 []."""
        return jax.nn.sigmoid(self.rate_logit[...])

    def options(self) -> dict[str, Any]:
        """What `concrete_dropout` takes besides inputs, rate and key."""
        return super().options() | {"temperature": self.temperature}

    def regularise(self, kernel: Any, gates: int) -> None:
        """Set ``penalty`` to what training has to add to its loss.

        Args:
            kernel: float [..., output], the weights of the layer behind this one.
            gates: elements that this layer drops independently in each example.
        """
        self.penalty[...] = functional.logit_regulariser(
            self.rate_logit[...], jnp.asarray(kernel), gates, self.examples, self.length_scale
        )


class DropConnectDense(DropoutLayer):
    """A dense layer that drops its weights, see `thinned.dropout.functional.connected`.

    Parameters are those of `flax.nnx.Linear`: ``kernel`` [input, output] and ``bias`` [output].
    """

    kind: ClassVar[str] = "connect"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: Any,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        per_example: bool = True,
        use_bias: bool = True,
        kernel_init: Any = _KERNEL,
        bias_init: Any = _BIAS,
        **options: Any,
    ) -> None:
        """Make the layer.

        Args:
            in_features: length of the inputs.
            out_features: length of the outputs.
            rate: probability of dropping a weight.
            rngs: streams, of the parameters and of the keys.
            activation: an elementwise function applied to the outputs, or None; see `connected`.
            per_example: whether each example has a mask of its own, see `drop_connect`.
            use_bias: whether outputs are shifted.
            kernel_init: of the kernel.
            bias_init: of the bias.
            options: as of `DropoutLayer`.
        """
        super().__init__(rate, rngs=rngs, **options)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features)))
        bias = bias_init(rngs.params(), (out_features,)) if use_bias else None
        self.bias = None if bias is None else nnx.Param(bias)
        self.activation, self.per_example = activation, per_example

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Source | None = None
    ) -> jax.Array:
        """Outputs float [..., output] of inputs float [..., input].

        Raises:
            RequestError: as of `DropoutLayer`.
        """
        off, rate = self.is_off(deterministic), self.chance
        drawn = not (off or is_plainly(0, rate) or is_plainly(1, rate))
        return functional.connected(
            inputs,
            self.kernel[...],
            None if self.bias is None else self.bias[...],
            rate,
            self.key(rngs) if drawn else None,
            off=off,
            activation=self.activation,
            per_example=self.per_example,
            bits=self.bits,
        )


def rekey(module: Any, key: Key) -> None:
    """Give every stream in a module its key of a step, and set its count to 0.

    Called inside the step with ``thinned.key_for(seed, "dropout", step)``, it makes what a step
    draws a function of the step alone: no random state is carried, saved or restored.

    Args:
        module: whose streams are changed.
        key: of the step; each stream gets another, by its own path.
    """
    for path, stream in nnx.iter_graph(module):
        if isinstance(stream, nnx.RngStream):
            set_key(stream, key_at(key, path))


def key_at(key: Key, path: Iterable[Any]) -> Key:
    """The key of a place, from the one of the whole module."""
    return jax.random.fold_in(key, zlib.crc32("/".join(map(str, path)).encode()))


def set_key(stream: nnx.RngStream, key: Key) -> None:
    """Let a stream begin again with a key; a stack of streams, with one for each."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    shape = stream.key[...].shape
    stream.key.set_value(jax.random.split(key, shape) if shape else key)
    stream.count.set_value(jnp.zeros(shape, jnp.uint32))


def _kept(rate: Any, kind: str, bits: Bits) -> Any:
    """A rate as a variable; of a plain number, where masks are drawn, at what is really dropped.

    So they stay the masks of the plain number, which f32 has not.
    """
    if rate is None:
        return None
    rate = checked_number(rate)
    if isinstance(rate, float) and bits == "threefry" and kind in _MASKED:
        with jax.ensure_compile_time_eval():
            rate = 1 - float(realised_keep(rate))
    return Rate(np.float32(rate) if isinstance(rate, float) else rate)
