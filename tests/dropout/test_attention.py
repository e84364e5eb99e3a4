"""Attention of Flax's layers with our dropout: the same numbers, and no mask kept."""

from functools import partial

import jax
import numpy as np
import pytest
from conftest import normal_values
from flax import linen as nn
from flax import nnx

import thinned
from thinned.core.errors import RequestError

KEY = jax.random.key(0)
X = normal_values(0, 3, 5, 8)


def of_linen(function, share, mask):
    options = {} if function is None else {"attention_fn": function}
    layer = nn.MultiHeadDotProductAttention(
        2, dropout_rate=0.4, broadcast_dropout=share, deterministic=False, **options
    )
    start = nn.MultiHeadDotProductAttention(2).init(KEY, X)
    return jax.jit(layer.apply)(start, X, mask=mask, rngs={"dropout": KEY})


def of_nnx(function, share, mask):
    options = {} if function is None else {"attention_fn": function}
    layer = nnx.MultiHeadAttention(
        2,
        8,
        dropout_rate=0.4,
        broadcast_dropout=share,
        deterministic=False,
        decode=False,
        rngs=nnx.Rngs(0),
        **options,
    )
    return layer(X, mask=mask)


@pytest.mark.parametrize("call", [of_linen, of_nnx])
@pytest.mark.parametrize("share", [True, False])
def test_it_computes_what_flax_does(call, share):
    mask = nn.make_causal_mask(X[..., 0])
    found, expected = (call(function, share, mask) for function in (thinned.attention, None))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_causal_attention_is_that_of_the_mask():
    parts = (X.reshape(3, 5, 2, 4),) * 3
    causal = thinned.attention(*parts, is_causal=True, deterministic=True)
    mask = nn.make_causal_mask(X[..., 0])
    expected = nn.dot_product_attention(*parts, mask=mask, deterministic=True)
    np.testing.assert_allclose(causal, expected, rtol=1e-5, atol=1e-6)


def test_weights_are_not_sown():
    with pytest.raises(RequestError, match="sow_weights"):
        of_linen(partial(thinned.attention, module=nn.Dense(1)), True, None)


def test_no_mask_is_kept_for_the_backward_pass():
    parts = (X.reshape(3, 5, 2, 4),) * 3

    def kept(function, **options):
        call = partial(function, dropout_rng=KEY, broadcast_dropout=False, **options)
        _, pull = jax.vjp(lambda *given: call(*given), *parts)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    plain = kept(thinned.attention, dropout_rate=0.0)
    dropped = kept(thinned.attention, dropout_rate=0.4, bits="fast")
    weights = 3 * 2 * 5 * 5 * 4
    # The weights before the dropout are kept, too: the product needs those after it.
    assert dropped - plain <= weights + 16
    assert kept(nn.dot_product_attention, dropout_rate=0.4) > dropped
