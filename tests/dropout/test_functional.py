import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal_values
from hypothesis import given, settings
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.dropout.functional import dropout

SHAPES = ((), (1,), (7, 33), (2, 3, 4, 5))
BITS = ("threefry", "fast")
KEYS = st.integers(0, 2**32 - 1).map(jax.random.key)
traced = jax.jit(dropout, static_argnames=("bits", "broadcast_dims"))
slope = jax.grad(lambda x, rate, key, bits: dropout(x, rate, key, bits=bits).sum())
slope_of_array = jax.jit(slope, static_argnums=3)
slope_of_number = jax.jit(slope, static_argnums=(1, 3))


def inputs(shape, dtype=jnp.float32):
    return (4 + normal_values(9, *shape)).astype(dtype)


@settings(max_examples=6)
@given(KEYS, st.sampled_from(SHAPES), st.sampled_from(BITS))
def test_rate_0_is_the_identity_and_rate_1_is_zero_with_a_zero_gradient(key, shape, bits):
    x = inputs(shape)
    for run in (dropout, traced):
        for one, zero in ((1, 0), (jnp.float32(1), jnp.float32(0))):
            assert np.array_equal(run(x, zero, key, bits=bits), x)
            assert not np.any(run(x, one, key, bits=bits))
    assert not np.any(slope_of_number(x, 1, key, bits))
    assert not np.any(slope_of_array(x, jnp.float32(1), key, bits))


@given(KEYS, st.sampled_from([0.01, 0.3, 0.5, 0.99]), st.sampled_from(BITS))
def test_survivors_are_scaled_exactly_and_the_same_address_gives_the_same_mask(key, rate, bits):
    x = inputs((40, 50))
    y = np.asarray(traced(x, jnp.float32(rate), key, bits=bits))
    assert np.array_equal(y, dropout(x, jnp.float32(rate), key, bits=bits))
    kept = y != 0
    # One rounding of the scale, one of the product.
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / (1 - rate), rtol=3e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.999])
def test_kept_fraction_and_mean_are_within_4_sigma(rate, bits):
    count = 1_000_000
    y = np.asarray(traced(jnp.ones(count), jnp.float32(rate), jax.random.key(5), bits=bits))
    sigma = np.sqrt(rate * (1 - rate) / count)
    assert abs((y != 0).mean() - (1 - rate)) < 4 * sigma
    assert abs(y.mean(dtype=np.float64) - 1) < 4 * sigma / (1 - rate)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_threefry_masks_are_those_of_bernoulli(rate):
    key, x = jax.random.key(3), inputs((31, 65))
    expected = jax.random.bernoulli(key, 1 - rate, x.shape)
    assert np.array_equal(dropout(x, rate, key) != 0, expected)


@given(KEYS, st.sampled_from([(0,), (1,), (-1,), (0, 2), (1, 3)]), st.sampled_from(BITS))
def test_masks_are_constant_along_shared_axes(key, axes, bits):
    x = inputs((2, 3, 4, 5))
    mask = np.asarray(traced(x, jnp.float32(0.5), key, bits=bits, broadcast_dims=axes)) != 0
    shared = mask.all(axes) | ~mask.any(axes)
    assert shared.all()


WRAPS, DTYPES = ("plain", "jit", "remat", "scan", "vmap"), (jnp.float32, jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize(
    ("wrap", "dtype", "bits"),
    [
        # With one generator by day; either meets every way and every dtype.
        pytest.param(wrap, dtype, each, marks=() if (i + j + k) % 2 else pytest.mark.long)
        for i, wrap in enumerate(WRAPS)
        for j, dtype in enumerate(DTYPES)
        for k, each in enumerate(BITS)
    ],
)
def test_forward_and_backward_masks_are_equal_and_dtypes_kept(bits, wrap, dtype):
    key, rate, x = jax.random.key(1), jnp.float32(0.4), inputs((8, 64), dtype)

    def run(v):
        return dropout(v, rate, key, bits=bits)

    if wrap == "scan":
        single = run

        def run(v):
            return jax.lax.scan(lambda carry, row: (carry, single(row)), 0, v[None])[1][0]

    elif wrap == "vmap":
        keys = jax.random.split(key, 8)

        def run(v):
            return jax.vmap(lambda row, one: dropout(row, rate, one, bits=bits))(v, keys)

    else:
        run = {"plain": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint}[wrap](run)

    def both(v):
        y, back = jax.vjp(run, v)
        return y, *back(jnp.ones_like(y))

    y, slope = both(x) if wrap == "plain" else jax.jit(both)(x)
    assert y.dtype == slope.dtype == dtype
    assert np.array_equal(y != 0, slope != 0)
    assert 0 < np.mean(y != 0) < 1


def test_a_map_over_rates_is_a_loop_over_rates_with_nested_masks():
    key, x, rates = jax.random.key(2), inputs((20, 20)), jnp.asarray([0.0, 0.2, 0.5, 1.0])
    mapped = jax.vmap(lambda rate: dropout(x, rate, key))(rates)
    for rate, y in zip(rates, mapped, strict=True):
        assert np.array_equal(y, dropout(x, rate, key))
    assert np.all((mapped[1] != 0) >= (mapped[2] != 0))


def test_nothing_of_the_mask_is_kept_for_the_backward_pass():
    x = inputs((64, 64))
    _, back = jax.vjp(lambda v: dropout(v, jnp.float32(0.5), jax.random.key(0)), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(back)) < 16


def test_a_plain_rate_of_0_draws_nothing():
    text = str(jax.make_jaxpr(lambda v, k: dropout(v, 0.0, k))(inputs((4,)), jax.random.key(0)))
    assert "shift" not in text
    assert "iota" not in text


def test_the_slope_along_the_rate_is_zero():
    slope = jax.grad(lambda r: dropout(inputs((9,)), r, jax.random.key(0)).sum())(jnp.float32(0.5))
    assert float(slope) == 0.0


def test_forward_mode_and_second_derivatives_work():
    key, x = jax.random.key(0), inputs((6,))
    hessian = jax.jit(jax.hessian(lambda v: jnp.sum(dropout(v, 0.5, key) ** 3)))(x)
    y = dropout(x, 0.5, key)
    np.testing.assert_allclose(np.diag(hessian), 6 * y * 4, rtol=1e-5)


@pytest.mark.parametrize(
    "rate",
    [
        -0.1,
        1.5,
        float("nan"),
        True,
        "0.5",
        jnp.float32(2),
        (0.1, 0.2),
        None,
        {},
        np.bool_(True),
        1j,
    ],
)
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(RequestError, match="rate is"):
        dropout(jnp.ones(3), rate, jax.random.key(0))


def test_wrong_inputs_and_axes_are_refused():
    with pytest.raises(RequestError, match="float array, not int32"):
        dropout(jnp.arange(3), 0.5, jax.random.key(0))
    with pytest.raises(RequestError, match="float array, not list"):
        dropout([1.0, 2.0], 0.5, jax.random.key(0))
    for key in (None, [0, 1], jax.random.split(jax.random.key(0)), jnp.zeros(2)):
        with pytest.raises(RequestError, match="key is expected"):
            dropout(jnp.ones(3), 0.5, key)
    for axes in (1, "a", ("a",), (0.5,)):
        with pytest.raises(RequestError, match="list of axes"):
            dropout(jnp.ones((3, 3)), 0.5, jax.random.key(0), broadcast_dims=axes)
    with pytest.raises(RequestError, match="axis 2"):
        dropout(jnp.ones((3, 3)), 0.5, jax.random.key(0), broadcast_dims=(2,))
