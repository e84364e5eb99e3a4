"""Attention whose dropout is that of `thinned.dropout.functional`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from thinned.core.errors import RequestError
from thinned.core.types import Bits, Key
from thinned.dropout.functional import Rate, dropout


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Key | None = None,
    dropout_rate: Rate = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    force_fp32_for_softmax: bool = False,
    is_causal: bool = False,
    module: Any = None,
    *,
    bits: Bits = "threefry",
) -> jax.Array:
    """The ``attention_fn`` of Flax's attention layers, Linen's and NNX's, with dropout of ours.

    Vaswani et al. (2017), "Attention is all you need", section 3.2.1. Nothing of a mask is kept for
    the backward pass; with ``threefry``, masks are Flax's own.

    Args:
        query: float [..., query, head, depth].
        key: float [..., key, head, depth].
        value: float [..., key, head, output].
        bias: added to the logits, of a shape that fits [..., head, query, key].
        mask: bool of such a shape, False where nothing is looked at.
        broadcast_dropout: whether one mask [query, key] serves all examples and heads.
        dropout_rng: used once; unused when deterministic.
        dropout_rate: probability of dropping a weight, 0 to 1.
        deterministic: whether nothing is dropped.
        dtype: of the computation; that of the inputs when absent.
        precision: of the products.
        force_fp32_for_softmax: whether weights are f32, whatever the inputs.
        is_causal: whether no query looks at later keys.
        module: not supported: weights that are sown.
        bits: generator, see `thinned.dropout.bits`.

    Returns:
        float [..., query, head, output].

    Raises:
        RequestError: as of `dropout`, or `module` is given.
    """
    if module is not None:
        raise RequestError("attention does not sow its weights: leave sow_weights out")
    query, key, value = promote_dtype(query, key, value, dtype=dtype)
    depth = jnp.sqrt(query.shape[-1]).astype(query.dtype)
    logits = jnp.einsum("...qhd,...khd->...hqk", query / depth, key, precision=precision)
    if bias is not None:
        logits = logits + bias
    if is_causal:
        earlier = jnp.tri(*logits.shape[-2:], dtype=bool)
        mask = earlier if mask is None else mask & earlier
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    wide = jnp.float32 if force_fp32_for_softmax else query.dtype
    weights: jax.Array = jax.nn.softmax(logits.astype(wide))
    if not deterministic:
        shared = range(weights.ndim - 2) if broadcast_dropout else ()
        drawn: Any = dropout_rng
        weights = dropout(weights, dropout_rate, drawn, bits=bits, broadcast_dims=shared)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=precision)
