import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.dropout.linen import Dropout
from thinned.dropout.sites import dropout_sites, rates_collection


def stack(layer):
    """The same module with Flax's dropout or ours, at the same paths."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            x = layer(0.25, name="first")(nn.Dense(8)(x), deterministic=deterministic)
            return layer(0.5, broadcast_dims=(0,), name="second")(x, deterministic=deterministic)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=False):
            return Block(name="b")(Block(name="a")(x, deterministic), deterministic)

    return Net()


@given(st.integers(0, 2**32 - 1))
def test_in_a_model_ours_gives_the_masks_of_flax(seed):
    x = jnp.ones((5, 3))
    params = stack(Dropout).init(jax.random.key(0), x, True)
    runs = [
        stack(layer).apply(params, x, rngs={"dropout": jax.random.key(seed)})
        for layer in (Dropout, nn.Dropout)
    ]
    assert np.array_equal(runs[0] != 0, runs[1] != 0)
    np.testing.assert_allclose(*runs, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("axes", [(), (0,), (-1,), (1, 2)])
def test_alone_ours_gives_the_masks_of_flax(rate, axes):
    x, key = jnp.ones((4, 5, 6)), jax.random.key(7)
    for options in ({"rngs": {"dropout": key}}, {"rng": key}):
        ours, theirs = (
            layer(rate, broadcast_dims=axes, deterministic=False).apply({}, x, **options)
            for layer in (Dropout, nn.Dropout)
        )
        assert np.array_equal(ours != 0, theirs != 0)


def test_another_stream_can_be_named():
    x, key = jnp.ones((100,)), jax.random.key(0)
    layers = (Dropout, nn.Dropout)
    ours, theirs = (
        layer(0.5, deterministic=False, rng_collection="other").apply({}, x, rngs={"other": key})
        for layer in layers
    )
    assert np.array_equal(ours != 0, theirs != 0)


def test_deterministic_is_the_identity_and_needs_no_key():
    x = jnp.ones((3, 3))
    assert Dropout(0.5, deterministic=True).apply({}, x) is x
    assert Dropout(0.5).apply({}, x, deterministic=True) is x


def test_what_flax_lets_pass_is_refused():
    x, keys = jnp.ones((3, 3)), {"dropout": jax.random.key(0)}
    with pytest.raises(RequestError, match="given nowhere"):
        Dropout(0.5).apply({}, x, rngs=keys)
    with pytest.raises(RequestError, match="given twice"):
        Dropout(0.5, deterministic=False).apply({}, x, deterministic=False, rngs=keys)
    for rate in (1.5, -0.5, float("nan")):
        with pytest.raises(RequestError, match="rate is"):
            Dropout(rate, deterministic=False).apply({}, x, rngs=keys)
    with pytest.raises(RequestError, match="deterministic is 'no'"):
        Dropout(0.5).apply({}, x, deterministic="no", rngs=keys)
    for off in (False, True):
        with pytest.raises(RequestError, match="axis 5"):
            Dropout(0.5, broadcast_dims=(5,), deterministic=off).apply({}, x, rngs=keys)
        for rate in (1.5, float("nan"), None):
            with pytest.raises(RequestError, match="rate is"):
                Dropout(rate, deterministic=off).apply({}, x, rngs=keys)
    with pytest.raises(RequestError, match="no key for the stream dropout, only for params"):
        Dropout(0.5, deterministic=False).apply({}, x, rngs={"params": jax.random.key(0)})


def test_what_flax_rightly_lets_pass_passes():
    x = jnp.ones((3, 3))
    for layer in (Dropout, nn.Dropout):
        assert not np.any(layer(1.0, deterministic=False).apply({}, x))
        # One key for everything is enough to initialise.
        assert layer(0.5, deterministic=False).init(jax.random.key(0), x) == {}
        assert layer(0.5).apply({}, jnp.arange(3), deterministic=np.bool_(True)).shape == (3,)
        streams = {"params": jax.random.key(0)}
        named = layer(0.5, deterministic=False, rng_collection="params")
        assert np.any(named.apply({}, x, rngs=streams) != x)


def test_sites_are_found_by_path_without_computing():
    sites = dropout_sites(stack(Dropout), jax.ShapeDtypeStruct((5, 3), jnp.float32))
    assert list(sites) == ["a/first", "a/second", "b/first", "b/second"]
    assert sites["b/first"].rate == 0.25
    assert sites["b/first"].shape == (5, 8)


def test_rates_beside_the_batch_are_traced_and_reach_their_site():
    net, x, key = stack(Dropout), jnp.ones((50, 3)), jax.random.key(0)
    params = net.init(key, x, True)["params"]
    traces = []

    @jax.jit
    def run(rates):
        traces.append(1)
        return net.apply({"params": params, "rates": rates}, x, rngs={"dropout": key})

    def at(*rates):
        names = ("a/first", "a/second", "b/first", "b/second")
        return run(rates_collection(dict(zip(names, map(jnp.float32, rates), strict=True))))

    assert np.array_equal(at(0, 0, 0, 0), net.apply({"params": params}, x, True))
    assert not np.any(at(0, 0, 0, 1))
    assert 0 < np.mean(at(0, 0, 0.5, 0) == 0) < 1
    assert len(traces) == 1


def test_init_never_creates_the_rates():
    assert set(stack(Dropout).init(jax.random.key(0), jnp.ones((5, 3)), True)) == {"params"}
