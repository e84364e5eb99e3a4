"""What Flax takes, layers take, with the same masks; and the options of timm and Keras."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from thinned.core.errors import RequestError
from thinned.dropout import functional as F
from thinned.dropout.linen import Dropout

KEY = jax.random.key(3)
ONES = jnp.ones((4, 5, 6))


def both(x, key=KEY, **options):
    return [
        layer(0.3, deterministic=False, **options).apply({}, x, rngs={"dropout": key})
        for layer in (Dropout, nn.Dropout)
    ]


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert np.array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_legacy_keys_of_the_default_kind(kind):
    with jax.default_prng_impl(kind):
        assert_same(*both(ONES, jax.random.PRNGKey(7)))


def test_a_legacy_key_of_another_kind_is_refused():
    with jax.default_prng_impl("rbg"), pytest.raises(RequestError, match=r"u32 \[4\]\), not"):
        F.dropout(ONES, 0.5, jnp.zeros(2, jnp.uint32))


@pytest.mark.parametrize("axes", [range(1, 3), np.array([0, 2]), jnp.array([1])], ids=repr)
def test_axes_of_any_form(axes):
    assert_same(*both(ONES, broadcast_dims=axes))


def test_complex_inputs():
    assert_same(*both(ONES.astype(jnp.complex64) * (1 + 2j)))
    with pytest.raises(RequestError, match="alpha dropout needs a float array"):
        F.alpha_dropout(ONES.astype(jnp.complex64), 0.5, KEY)


@pytest.mark.parametrize("bits", ["threefry", "fast"])
def test_a_symbolic_batch_can_be_exported(bits):
    (batch,) = export.symbolic_shape("batch")
    drop = jax.jit(partial(F.dropout, rate=0.3, bits=bits))
    shapes = (jax.ShapeDtypeStruct((batch, 6), "float32"), jax.ShapeDtypeStruct((2,), "uint32"))
    program = export.export(jax.jit(lambda x, key: drop(x, key=key)))(*shapes)
    x, key = jnp.ones((5, 6)), jax.random.PRNGKey(1)
    assert np.array_equal(program.call(x, key), drop(x, key=key))


def test_interceptors_see_what_they_see_of_flax():
    def calls(layer):
        seen = []

        def note(run, values, options, context):
            seen.append((context.method_name, context.module.name))
            return run(*values, **options)

        with nn.intercept_methods(note):
            layer(0.3, deterministic=False).apply({}, ONES, rngs={"dropout": KEY})
        return seen

    assert calls(Dropout) == calls(nn.Dropout)


def test_an_eager_call_is_one_program_and_leaves_no_trace_in_others():
    F._elements.clear_cache()
    for number in range(3):
        F.dropout(ONES, 0.3, jax.random.key(number))
    assert F._elements._cache_size() == 1
    traced = jax.make_jaxpr(lambda x: F.dropout(x, 0.3, KEY))(ONES)
    assert [equation.primitive.name for equation in traced.eqns] in (["remat2"], ["checkpoint"])


def test_paths_may_stay_unscaled():
    plain, scaled = (F.drop_path(ONES, 0.5, KEY, scale_by_keep=scale) for scale in (False, True))
    assert set(np.unique(plain)) == {0, 1}
    np.testing.assert_allclose(scaled, 2 * plain, rtol=1e-6)


@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 3)])
def test_blocks_can_be_shared_along_batch_and_channel(axes):
    ones = jnp.ones((4, 6, 6, 5))
    found = F.drop_block(ones, 0.4, KEY, block_size=2, broadcast_dims=axes)
    small = ones[tuple(slice(1 if n in axes or n - 4 in axes else None) for n in range(4))]
    expected = F.drop_block(small, 0.4, KEY, block_size=2)
    np.testing.assert_array_equal(found, jnp.broadcast_to(expected, ones.shape))
    assert 0 < np.mean(np.asarray(found) == 0) < 1


def test_blocks_are_not_shared_along_the_axes_they_lie_in():
    with pytest.raises(RequestError, match="along batch and channel"):
        F.drop_block(jnp.ones((2, 6, 6, 3)), 0.4, KEY, broadcast_dims=(1,))


@pytest.mark.parametrize("function", [F.gaussian_dropout, F.alpha_dropout, F.concrete_dropout])
def test_every_kind_of_noise_can_be_shared(function):
    found = function(ONES, 0.3, KEY, broadcast_dims=(1,))
    expected = function(ONES[:, :1], 0.3, KEY)
    np.testing.assert_allclose(found, jnp.broadcast_to(expected, ONES.shape), rtol=1e-6)
