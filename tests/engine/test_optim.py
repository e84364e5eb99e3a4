import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.engine.optim import max_norm


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_norms_of_incoming_weights_stay_within_the_limit(seed, limit):
    one, two = jax.random.split(jax.random.key(seed))
    params = {"kernel": jax.random.normal(one, (3, 3, 4, 7)), "bias": jnp.full(7, 100.0)}
    grads = {"kernel": jax.random.normal(two, (3, 3, 4, 7)), "bias": jnp.ones(7)}
    tx = optax.chain(optax.sgd(1.0), max_norm(limit))
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    free = np.asarray(params["kernel"] - grads["kernel"])
    norms = np.linalg.norm(free.reshape(-1, 7), axis=0)
    expected = free * np.minimum(1, limit / norms)
    np.testing.assert_allclose(after["kernel"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["bias"], 99.0)


def test_weights_of_zero_stay_finite():
    params, tx = {"kernel": jnp.zeros((3, 2))}, max_norm(1.0)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not np.any(updates["kernel"])


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "3", None, np.float32(-1)])
def test_a_limit_that_is_no_radius_is_refused(limit):
    with pytest.raises(RequestError, match="max_norm limit"):
        max_norm(limit)
    with pytest.raises(RequestError, match="needs the parameters"):
        max_norm(1.0).update({}, optax.EmptyState())
