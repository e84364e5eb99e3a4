"""The mathematics of dropout, as pure functions of (inputs, rate, key).

Every function here is the identity at rate 0 and zero, with a zero gradient, at rate 1; keeps the
dtype; and keeps nothing of its mask for the backward pass: from the key, it is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from thinned.core.errors import RequestError
from thinned.core.types import Bits, Key
from thinned.dropout.bits import checked_key, keep_mask, normal, realised_keep, uniform
from thinned.dropout.masks import (
    block_sizes,
    grown,
    inner_axes,
    mask_shape,
    seed_rate,
    seed_shape,
    spatial_axes,
)

Rate = Any
"""A drop probability: a Python number, or an f32 [] that may be traced."""

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _redrawn(body: Callable[..., jax.Array], apart: bool = False) -> Callable[..., jax.Array]:
    """A function of (x, rate, key, static) whose backward pass holds on to the key, not the mask.

    One program where it is called eagerly, and no trace of that where it is traced.

    Args:
        body: that function.
        apart: whether XLA must not find that both directions draw the same, and draw once and keep
            a word for each element; noise that costs a logarithm it had better keep.
    """
    again = jax.checkpoint(body, prevent_cse=apart, static_argnums=3)
    return jax.jit(again, static_argnums=3, inline=True)


def dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
    scaled: bool = True,
) -> jax.Array:
    """Drop elements independently and scale the survivors up, so that the mean is kept.

    Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, section 4, in the inverted form: nothing is to be done at inference.

    Args:
        x: float or complex array of any shape (f32, bf16, f16, c64).
        rate: probability of dropping, 0 to 1 inclusive; may be traced. Exact identity at 0, exact
            zeros with a zero gradient at 1. A plain number 0 draws no random bits.
        key: used once; unused when `rate` is the plain number 0 or 1.
        bits: generator, see `thinned.dropout.bits`. ``threefry`` gives the masks of
            ``jax.random.bernoulli(key, 1 - rate)``, and so those of ``flax.linen.Dropout``.
        broadcast_dims: axes along which one draw is shared.
        scaled: whether survivors are scaled up; otherwise the mean is multiplied by ``1 - rate``.

    Returns:
        An array like `x`. Survivors are divided by the probability with which `bits` really keeps,
        which differs from ``1 - rate`` by at most 2**-23. Nothing of the mask is kept for the
        backward pass: it is drawn again. The gradient with respect to `rate` is zero.

    Raises:
        RequestError: `x` is neither float nor complex, `rate` is out of range, or an axis does not
            exist.
    """
    shape = mask_shape(_shape_of(x), broadcast_dims)
    return _between(_elements, x, rate, key, (shape, scaled, bits))


def channel_dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
) -> jax.Array:
    """Drop whole feature maps: `dropout` with one draw for each example and channel.

    Tompson et al. (2015), "Efficient object localization using convolutional networks", section
    3.2, under the name SpatialDropout.

    Args:
        x: float [batch, ..., channel] with at least one axis in between, e.g. height and width.
        rate, key, bits: as for `dropout`.
        broadcast_dims: axes along which one draw is shared, too.

    Raises:
        RequestError: as `dropout`, or `x` has fewer than three axes.
    """
    axes = (*spatial_axes(_shape_of(x), "channel"), *broadcast_dims)
    return dropout(x, rate, key, bits=bits, broadcast_dims=axes)


def drop_path(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
    scale_by_keep: bool = True,
) -> jax.Array:
    """Drop whole examples' branches: `dropout` with one draw for each example.

    Huang et al. (2016), "Deep networks with stochastic depth", section 3, with survivors scaled up
    in training instead of down at inference. Apply it to a residual branch before the addition.

    Args:
        x: float [batch, ...].
        rate, key, bits: as for `dropout`.
        broadcast_dims: axes along which one draw is shared, too: with (0,), all examples lose the
            branch together, as in the paper.
        scale_by_keep: whether survivors are scaled up.

    Raises:
        RequestError: as `dropout`, or `x` is a scalar.
    """
    axes = (*inner_axes(_shape_of(x), "path"), *broadcast_dims)
    return dropout(x, rate, key, bits=bits, broadcast_dims=axes, scaled=scale_by_keep)


def drop_block(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    block_size: int = 7,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
) -> jax.Array:
    """Drop square regions of feature maps, each channel's own unless `broadcast_dims` says.

    Ghiasi et al. (2018), "DropBlock: a regularization method for convolutional networks", algorithm
    1. Blocks lie wholly inside the map, for odd and even sides alike. How often they are drawn is
    solved for exactly, see `thinned.dropout.masks.seed_rate`.

    Args:
        x: float [batch, ..., channel] with at least one axis in between, e.g. height and width.
        rate: average fraction of a map to drop; otherwise as for `dropout`.
        key, bits: as for `dropout`.
        block_size: side of a block, in positions, at least 1; no larger than the map is used.
        broadcast_dims: axes along which blocks are shared: -1 for all channels of an example to
            lose the same blocks, 0 for all examples.

    Returns:
        An array like `x`, each example multiplied by (its elements / its elements kept), so that an
        example of equal values keeps its mean exactly; zeros where nothing is kept. Borders are
        covered by fewer blocks, and so survive more often than the middle.

    Raises:
        RequestError: as `dropout`, `x` has fewer than three axes, `block_size` is below 1, or
            blocks would be shared along an axis that they lie in.
    """
    size: Any = block_size
    whole = isinstance(size, int | np.integer) or (isinstance(size, float) and size.is_integer())
    if isinstance(size, bool) or not whole or size < 1:
        raise RequestError(f"block_size is {block_size!r}: must be a whole number of at least 1")
    blocks = block_sizes(_shape_of(x), int(block_size))
    shape = mask_shape(x.shape, broadcast_dims)
    if shape[1:-1] != x.shape[1:-1]:
        raise RequestError(
            f"broadcast_dims is {broadcast_dims!r}: blocks can be shared along batch and channel"
        )
    return _between(_blocks, x, rate, key, (shape, blocks, bits))


def gaussian_dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
) -> jax.Array:
    """Multiply by normal noise of mean 1 and the variance that dropout at `rate` has.

    Srivastava et al. (2014), section 10: the variance is ``rate / (1 - rate)``.

    Args:
        x: float array of any shape.
        rate, key, bits, broadcast_dims: as for `dropout`; zeros at rate 1, where the variance has
            no value.

    Raises:
        RequestError: as `dropout`.
    """
    return _between(_noise, x, rate, key, (mask_shape(_shape_of(x), broadcast_dims), bits))


def alpha_dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
) -> jax.Array:
    """Set elements to SELU's negative limit, then shift and scale so that mean and variance stay.

    Klambauer et al. (2017), "Self-normalizing neural networks", section 3 ("New dropout
    technique"). It keeps a mean of 0 and a variance of 1, those of activations after SELU, and is
    meant for networks of these only.

    Args:
        x: float array of any shape.
        rate, key, bits, broadcast_dims: as for `dropout`.

    Raises:
        RequestError: as `dropout`, or `x` is complex, of which SELU has no limit.
    """
    shape = mask_shape(_shape_of(x), broadcast_dims)
    if jnp.iscomplexobj(x):
        raise RequestError(f"alpha dropout needs a float array, not {x.dtype}")
    return _between(_alpha, x, rate, key, (shape, bits))


def concrete_dropout(
    x: jax.Array,
    rate: Rate,
    key: Key,
    *,
    temperature: float = 0.1,
    bits: Bits = "threefry",
    broadcast_dims: Iterable[int] = (),
) -> jax.Array:
    """Dropout with nearly binary masks, through which the rate itself has a gradient.

    Gal, Hron & Kendall (2017), "Concrete dropout", section 3. Each element is multiplied by
    ``sigmoid(-(logit(rate) + logit(u)) / temperature)`` with u uniform, and divided by the mean of
    that number. The paper divides by ``1 - rate``, which at temperature 0.1 is off by up to 0.2 %
    of the mean for rates up to 0.5.

    Args:
        x: float array of any shape.
        rate: as for `dropout`; an array rate has a gradient, zero at 0 and at 1.
        key, bits, broadcast_dims: as for `dropout`.
        temperature: above 0; masks are the more binary, and gradients the noisier, the lower.

    Raises:
        RequestError: as `dropout`, or `temperature` is not above 0.
    """
    given: Any = temperature
    number = isinstance(given, int | float | np.number)
    if not (number and temperature > 0 and math.isfinite(temperature)):
        raise RequestError(f"temperature is {temperature!r}: must be a number above 0")
    shape = mask_shape(_shape_of(x), broadcast_dims)
    return _between(_concrete, x, rate, key, (shape, float(temperature), bits))


def concrete_regulariser(
    rate: jax.Array, kernel: jax.Array, gates: int, examples: int, length_scale: float = 0.01
) -> jax.Array:
    """What keeps a learned rate in place, to be added to the mean loss per example.

    Gal, Hron & Kendall (2017), section 3, eq. 3-4: the divergence between the distribution over
    networks and its prior, ``length_scale**2 / 2 * sum(kernel**2) / (1 - rate) - gates * H(rate)``,
    divided by the number of training examples; `kernel` multiplies inputs already scaled up, hence
    the quotient.

    Args:
        rate: f32 [], 0 to 1; at the ends, where eq. 3 has no value or no slope, as just before.
        kernel: weights of the layer behind the dropout.
        gates: elements dropped independently in each example.
        examples: training examples.
        length_scale: of the prior over weights; larger means smaller weights.

    Returns:
        f32 [], in nats per example.
    """
    inside = jnp.clip(rate, 2.0**-100, 1.0 - 2.0**-24)
    logit = jnp.log(inside) - jnp.log1p(-inside)
    return logit_regulariser(logit, kernel, gates, examples, length_scale)


def logit_regulariser(
    logit: jax.Array, kernel: jax.Array, gates: int, examples: int, length_scale: float = 0.01
) -> jax.Array:
    """`concrete_regulariser` of the rate ``sigmoid(logit)``, with a slope where that rounds to 1.

    Args:
        logit: f32 [], any; the quotient ``1 / (1 - rate)`` grows no further beyond 40.
        kernel, gates, examples, length_scale: as for `concrete_regulariser`.
    """
    sigmoid, softplus = jax.nn.sigmoid, jax.nn.softplus
    entropy = softplus(-logit) * sigmoid(logit) + softplus(logit) * sigmoid(-logit)
    squares = jnp.sum(jnp.square(kernel.astype(jnp.float32)))
    weights = 0.5 * length_scale**2 * squares * (1 + jnp.exp(jnp.minimum(logit, 40.0)))
    return (weights - gates * entropy) / examples


def drop_connect(
    x: jax.Array,
    kernel: jax.Array,
    rate: Rate,
    key: Key,
    *,
    per_example: bool = True,
    bits: Bits = "threefry",
) -> jax.Array:
    """The product ``x @ kernel`` with weights dropped instead of activations.

    Wan et al. (2013), "Regularization of neural networks using DropConnect", section 3, survivors
    scaled up.

    Args:
        x: float [..., input].
        kernel: float [input, output], of the dtype of `x`.
        rate, key, bits: as for `dropout`.
        per_example: whether each example has a mask of its own, as in the paper. That draws
            (examples x inputs x outputs) bits and cannot use matrix products; one mask for the
            whole batch costs little, but the examples of a batch then share one thinned network.

    Returns:
        float [..., output].

    Raises:
        RequestError: as `dropout`, or shapes do not fit.
    """
    left, right = _shape_of(x), _shape_of(kernel)
    if len(right) != 2 or not left or left[-1] != right[0]:
        raise RequestError(f"drop_connect cannot multiply {left} by a kernel {right}")
    rate = checked_rate(rate, x)
    ends = isinstance(rate, float) and rate in (0.0, 1.0)
    if ends or 0 in (*left, *right):
        product = x @ kernel
        return jnp.zeros_like(product) if rate == 1.0 else product
    checked_key(key)
    if not per_example:
        product = x @ dropout(kernel, rate, key, bits=bits)
        return jnp.where(jnp.asarray(rate) < 1, product, jnp.zeros((), product.dtype))
    plain = rate if isinstance(rate, float) else None
    return _connections(x, kernel, (jnp.asarray(rate, jnp.float32), key), (bits, plain))


def drop_connect_moments(
    x: jax.Array, kernel: jax.Array, rate: Rate
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of `drop_connect` over masks, both [..., output], in closed form.

    Wan et al. (2013), section 3.2 ("Inference"), with survivors scaled up: the mean is
    ``x @ kernel``, the variance ``rate / (1 - rate) * x**2 @ kernel**2`` (0 at rate 1).
    """
    keep = 1.0 - jnp.asarray(checked_rate(rate, x), x.dtype)
    ratio = jnp.where(keep > 0, (1.0 - keep) / jnp.where(keep > 0, keep, 1.0), 0.0)
    return x @ kernel, ratio * (jnp.square(x) @ jnp.square(kernel))


def connected(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    rate: Rate,
    key: Key | None,
    *,
    off: bool,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    per_example: bool = True,
    bits: Bits = "threefry",
) -> jax.Array:
    """A dense layer whose weights are dropped.

    Wan et al. (2013), section 3.2 ("Inference"): at prediction time the activation is averaged over
    the normal distribution that has the mean and the variance of the outputs over masks. They
    sample it; here it is taken at evenly spaced quantiles, so that inference is exact and the same
    every time.

    Args:
        x: float [..., input].
        kernel, rate, per_example, bits: as of `drop_connect`.
        bias: float [output], never dropped; or None.
        key: used once; unused when off or `rate` is the plain number 0 or 1.
        off: whether nothing is dropped.
        activation: an elementwise function applied to the outputs, or None.

    Returns:
        float [..., output].
    """
    kernel = kernel.astype(x.dtype)
    shift = jnp.zeros((), x.dtype) if bias is None else bias.astype(x.dtype)
    function = activation or (lambda values: values)
    if is_plainly(0, rate) or (off and activation is None):
        return function(x @ kernel + shift)
    if not off:
        thinned: Any = key
        product = drop_connect(x, kernel, rate, thinned, per_example=per_example, bits=bits)
        return function(product + shift)
    mean, variance = drop_connect_moments(x, kernel, rate)
    return expected_activation(function, mean + shift, variance)


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


def start_logit(rate: Rate) -> float:
    """The logit of a rate that is to be learned, as f32 [].

    Raises:
        RequestError: it is no number, or 0 or 1, from where no gradient leads away.
    """
    start = float(checked_number(rate))
    if not 0 < start < 1:
        raise RequestError(f"a learned rate cannot start at {start}: choose between 0 and 1")
    return math.log(start) - math.log1p(-start)


def is_plainly(end: int, rate: Rate) -> bool:
    """Whether a rate is the plain number 0, or 1, where nothing is drawn."""
    return isinstance(rate, int | float) and rate == end


def checked_rate(rate: Rate, x: jax.Array) -> Rate:
    """A plain number as a float in [0, 1]; an array (traced or not) as it is.

    Raises:
        RequestError: `x`, what is to be dropped, is no float or complex array; or a plain number,
            or an array whose value is known, is out of range or NaN; or is no single number.
    """
    _shape_of(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise RequestError(f"dropout needs a float array, not {x.dtype}")
    return checked_number(rate)


def checked_number(rate: Rate) -> Rate:
    """`checked_rate` without a look at what is to be dropped.

    Raises:
        RequestError: `rate` is out of range, NaN, or no single number.
    """
    known = isinstance(rate, int | float | np.number | np.ndarray | jax.Array)
    real = known and any(
        jnp.issubdtype(jnp.result_type(rate), kind) for kind in (jnp.integer, jnp.floating)
    )
    if not real or np.shape(rate) != ():
        raise RequestError(f"rate is {rate!r}: must be one number from 0 to 1")
    if isinstance(rate, Tracer):
        return rate
    value = float(rate)
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise RequestError(f"rate is {value}: must be a number from 0 to 1")
    return value if isinstance(rate, int | float) else rate


def _shape_of(x: Any) -> tuple[int, ...]:
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise RequestError(f"dropout needs a float array, not {type(x).__name__}")
    return x.shape


def _between(
    body: Callable[..., jax.Array], x: jax.Array, rate: Rate, key: Key, how: tuple[Any, ...]
) -> jax.Array:
    """`body`, or what a plain rate at either end gives without drawing anything."""
    rate = checked_rate(rate, x)
    if is_plainly(0, rate) or is_plainly(1, rate):
        return x if rate == 0.0 else jnp.zeros_like(x)
    # A plain number goes along: its complement is taken in double precision, as in Flax.
    plain = rate if isinstance(rate, float) else None
    checked_key(key)
    return body(x, jnp.asarray(rate, jnp.float32), key, (*how, plain))


def _chance(rate: jax.Array, plain: float | None) -> Rate:
    return jax.lax.stop_gradient(rate) if plain is None else plain


def _inverse(keep: jax.Array) -> jax.Array:
    return jnp.where(keep > 0, 1.0 / jnp.maximum(keep, jnp.float32(2.0**-33)), 0.0)


def _scaled(x: jax.Array, scale: jax.Array, shift: jax.Array | float = 0.0) -> jax.Array:
    """`x` times `scale` plus `shift` in at least f32: a rounded scale would bias the mean."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * scale
    return (wide if isinstance(shift, float) else wide + shift).astype(x.dtype)


@partial(_redrawn, apart=True)
def _elements(x: jax.Array, rate: jax.Array, key: Key, how: tuple[Any, ...]) -> jax.Array:
    shape, scaled, bits, plain = how
    chance = _chance(rate, plain)
    mask = keep_mask(key, shape, chance, bits)
    if shape != x.shape or (bits == "threefry" and jax.default_backend() == "cpu"):
        # XLA would fuse the draw into all that use the mask and repeat it in each, and for every
        # element that shares it; behind an exponential, which it counts as expensive, it draws
        # once. Where nothing is shared the fast bits are cheap enough to be drawn again.
        mask = jnp.exp(jnp.where(mask, jnp.float32(0), -jnp.inf)) > 0
    kept = _scaled(x, _inverse(realised_keep(chance, bits))) if scaled else x
    return jnp.where(mask, kept, jnp.zeros((), x.dtype))


@_redrawn
def _blocks(x: jax.Array, rate: jax.Array, key: Key, how: tuple[Any, ...]) -> jax.Array:
    shape, blocks, bits, _ = how
    chance = seed_rate(jax.lax.stop_gradient(rate), shape, blocks)
    corners = seed_shape(shape, blocks)
    keep = ~grown(~keep_mask(key, corners, chance, bits), blocks)
    axes = tuple(range(1, x.ndim))
    kept = jnp.sum(keep, axes, jnp.float32, keepdims=True)
    scale = jnp.where(kept > 0, math.prod(shape[1:]) / jnp.maximum(kept, 1.0), 0.0)
    return jnp.where(keep, _scaled(x, scale), jnp.zeros((), x.dtype))


@_redrawn
def _noise(x: jax.Array, rate: jax.Array, key: Key, how: tuple[Any, ...]) -> jax.Array:
    shape, bits, _ = how
    rate = jax.lax.stop_gradient(rate)
    deviation = jnp.sqrt(rate * _inverse(1.0 - rate))
    noise = 1.0 + deviation * normal(key, shape, bits)
    # The product is replaced, not the factor: 0 times an infinite input is no zero.
    return jnp.where(rate < 1, x * noise.astype(x.dtype), jnp.zeros((), x.dtype))


@_redrawn
def _alpha(x: jax.Array, rate: jax.Array, key: Key, how: tuple[Any, ...]) -> jax.Array:
    shape, bits, plain = how
    chance = _chance(rate, plain)
    keep = realised_keep(chance, bits)
    limit = -SELU_SCALE * SELU_ALPHA
    scale = jnp.sqrt(_inverse(keep * (1.0 + limit**2 * (1.0 - keep))))
    shift = -scale * limit * (1.0 - keep)
    mask = keep_mask(key, shape, chance, bits)
    chosen = jnp.where(mask, x, jnp.asarray(limit, x.dtype))
    return jnp.where(keep > 0, _scaled(chosen, scale, shift), jnp.zeros((), x.dtype))


@_redrawn
def _concrete(x: jax.Array, rate: jax.Array, key: Key, how: tuple[Any, ...]) -> jax.Array:
    shape, temperature, bits, _ = how
    inside = (rate > 0) & (rate < 1)
    # The ends are replaced before the logarithms, or their gradients would be NaN.
    safe = jnp.where(inside, rate, 0.5)
    drop_logit = jnp.log(safe) - jnp.log1p(-safe)
    u = uniform(key, shape, bits)
    gate = jax.nn.sigmoid(-(drop_logit + jnp.log(u) - jnp.log1p(-u)) / temperature)
    # A gate is a quotient itself, and XLA turns a quotient of one into other products where a
    # program is for several devices: other bits.
    gate = gate * (1.0 / _mean_gate(drop_logit, temperature))
    gate = jnp.where(inside, gate, jnp.where(rate > 0, 0.0, 1.0))
    return jnp.where(rate < 1, x * gate.astype(x.dtype), jnp.zeros((), x.dtype))


def _mean_gate(drop_logit: jax.Array, temperature: float) -> jax.Array:
    """The mean of a concrete gate over u, exact to f32.

    A gate is the chance that a logistic number, times the temperature, stays below its argument;
    the two logistic numbers may change places, and the integral is smooth in the colder one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)
    logistic = np.log((1 + nodes) / (1 - nodes))
    cold, hot = min(temperature, 1.0), max(temperature, 1.0)
    gates = jax.nn.sigmoid(-(drop_logit + jnp.asarray(cold * logistic, jnp.float32)) / hot)
    return jnp.sum(jnp.asarray(weights / 2, jnp.float32) * gates)


def _on_one_device() -> bool:
    """Whether what is traced is for one device: there is no other, or each has its own part."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or 0 < len(mesh.axis_names) == len(mesh.manual_axes)


@partial(jax.jit, static_argnums=3, inline=True)
def _connections(
    x: jax.Array, kernel: jax.Array, drawn: tuple[jax.Array, Key], how: tuple[Any, ...]
) -> jax.Array:
    (rate, key), (bits, plain) = drawn, how
    chance = _chance(rate, plain)

    @partial(jax.checkpoint, prevent_cse=False)
    def one(row: jax.Array, index: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, index)
        mask = keep_mask(own, kernel.shape, chance, bits)
        return row @ jnp.where(mask, kernel, jnp.zeros((), kernel.dtype))

    rows = x.reshape(-1, x.shape[-1])
    indices = jnp.arange(rows.shape[0], dtype=jnp.uint32)
    if rows.shape[0] == 1:
        outputs = one(rows[0], indices[0])[None]
    elif jax.default_backend() == "cpu" and _on_one_device():
        # One by one: all thinned kernels at once would fill the memory, and every cache. But a
        # loop over examples cannot be spread over devices.
        outputs = jax.lax.map(lambda pair: one(*pair), (rows, indices))
    else:
        # Zeros made from the rows, so that the indices lie on the devices where the rows are.
        nothing = (rows[:, 0] > 0).astype(jnp.uint32) * jnp.uint32(0)
        outputs = jax.vmap(one)(rows, nothing + indices)
    keep = realised_keep(chance, bits)
    outputs = outputs.reshape(*x.shape[:-1], kernel.shape[1])
    return jnp.where(keep > 0, _scaled(outputs, _inverse(keep)), jnp.zeros((), x.dtype))
