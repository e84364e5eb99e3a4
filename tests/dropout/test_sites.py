"""Layers of every kind inside modules: names, rates beside the batch, learned rates, inference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import uniform_values
from flax import linen as nn

from thinned.core.errors import RequestError
from thinned.data.batch import Batch
from thinned.dropout import functional as F
from thinned.dropout import linen as L
from thinned.dropout.sites import DropoutSpec, dropout_sites, rates_collection
from thinned.engine.step import create_state, train_step
from thinned.models.cnn import CNN

KINDS = ("element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect")
IMAGES = uniform_values(0, 8, 8, 8, 1)
KEY = jax.random.key(1)


def network(kind):
    return CNN(classes=3, dropout=DropoutSpec(kind, examples=100))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_in_the_network_and_is_the_plain_one_in_evaluation(kind):
    model = network(kind)
    variables = model.init(jax.random.key(2), IMAGES)
    plain = {**variables["params"]}
    assert ("Dropout_0" in plain) == (kind == "concrete")
    plain.pop("Dropout_0", None)
    expected = CNN(classes=3).apply({"params": plain}, IMAGES)
    np.testing.assert_allclose(model.apply(variables, IMAGES), expected, rtol=1e-5, atol=1e-6)
    drawn = model.apply(variables, IMAGES, train=True, rngs={"dropout": KEY})
    assert np.max(np.abs(drawn - expected)) > 1e-3
    again = model.apply(variables, IMAGES, train=True, rngs={"dropout": KEY})
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_listed_and_takes_its_rate_by_name(kind):
    sites = dropout_sites(network(kind), IMAGES, train=True)
    name = "Dense_0" if kind == "connect" else "Dropout_0"
    assert list(sites) == [name]
    assert sites[name].kind == kind
    assert sites[name].learned == (kind == "concrete")
    if kind == "concrete":
        return
    model = network(kind)
    variables = model.init(jax.random.key(2), IMAGES)

    def at(rate):
        sent = {**variables, "rates": rates_collection({name: jnp.float32(rate)})}
        return model.apply(sent, IMAGES, train=True, rngs={"dropout": KEY})

    np.testing.assert_allclose(at(0), model.apply(variables, IMAGES), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(at(0.9) - at(0.1))) > 1e-3


def test_a_learned_rate_follows_the_gradient_and_its_regulariser():
    """Noise only: nothing is to be learned, so the entropy term pulls the rate towards 1/2."""
    model = CNN(classes=3, dropout=DropoutSpec("concrete", rate=0.1, examples=8))
    state = create_state(model, IMAGES, KEY, optax.adam(0.05))
    batch = Batch(IMAGES, jnp.arange(8) % 3)
    rates = []
    step = jax.jit(train_step)
    for index in range(30):
        state, sums = step(state, batch, {}, jax.random.fold_in(KEY, index))
        rates.append(float(jax.nn.sigmoid(state.params["Dropout_0"]["rate_logit"])))
    assert rates[0] > 0.1
    assert rates[-1] > 0.3
    assert 0 < float(sums.loss) / 8 < 10
    assert "losses" not in state.model_state


def test_regularisers_are_sown_only_where_they_are_collected():
    model = network("concrete")
    variables = model.init(jax.random.key(2), IMAGES)
    assert set(variables) == {"params"}
    _, sown = model.apply(variables, IMAGES, train=True, rngs={"dropout": KEY}, mutable=["losses"])
    assert list(sown["losses"]) == ["Dropout_0"]


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_inference_of_dropconnect_averages_the_activation(rate):
    """Against 200,000 masks of NumPy's, for a wide layer whose outputs are nearly normal."""
    layer = L.DropConnectDense(4, rate, activation=nn.relu, bits="fast")
    x = jax.random.normal(jax.random.key(3), (64,))
    init, apply = (
        jax.jit(function, static_argnames="deterministic") for function in (layer.init, layer.apply)
    )
    variables = init(jax.random.key(4), x, deterministic=True)
    found = apply(variables, x, deterministic=True)
    random = np.random.default_rng(0)
    weights = np.asarray(x)[:, None] * np.asarray(variables["params"]["kernel"]) / (1 - rate)
    bias = np.asarray(variables["params"]["bias"])
    outputs = [
        ((random.random((20_000, 64, 4), np.float32) >= rate) * weights).sum(1) + bias
        for _ in range(10)
    ]
    sampled = np.maximum(np.concatenate(outputs), 0)
    mean, spread = sampled.mean(0, dtype=np.float64), sampled.std(0)
    # 2 % of the spread is left to the normal approximation, which Wan et al. make.
    bound = 4 * spread / np.sqrt(len(sampled)) + 0.02 * spread
    assert np.all(np.abs(mean - found) < bound)
    # The layer's own masks are those; tests/dropout/test_kinds.py has the moments of 100,000.
    many = jnp.broadcast_to(x, (10_000, 64))
    own = apply(variables, many, deterministic=False, rngs={"dropout": KEY})
    assert np.all(np.abs(np.asarray(own, np.float64).mean(0) - mean) < 4.1 * spread / 100)
    weight_scaling = jax.jit(lambda: nn.relu(nn.Dense(4).apply(variables, x)))()
    assert np.max(np.abs(weight_scaling - found)) > 0.02


def test_expected_activations_have_the_moments_of_the_normal():
    mean, variance = jnp.asarray([0.0, 1.0, -2.0]), jnp.asarray([1.0, 4.0, 0.0])
    np.testing.assert_allclose(F.expected_activation(lambda v: v, mean, variance), mean, atol=1e-5)
    squares = F.expected_activation(jnp.square, mean, variance)
    np.testing.assert_allclose(squares, mean**2 + variance, rtol=1e-5)


def test_dropconnect_has_the_parameters_of_a_dense_layer():
    x = jnp.ones((2, 6))
    ours = L.DropConnectDense(4, 0.5, deterministic=True).init(KEY, x)
    theirs = nn.Dense(4).init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "layer",
    [
        L.ChannelDropout(0.5),
        L.DropBlock(0.5, block_size=2),
        L.DropPath(0.5),
        L.GaussianDropout(0.5),
        L.AlphaDropout(0.5),
        L.ConcreteDropout(0.5),
        L.DropConnectDense(3, 0.5),
    ],
    ids=lambda layer: layer.kind,
)
def test_every_layer_says_when_deterministic_is_missing_and_takes_a_key(layer):
    x = jnp.ones((2, 4, 4, 3))
    variables = layer.init(KEY, x, deterministic=True)
    with pytest.raises(RequestError, match="given nowhere"):
        layer.apply(variables, x, rngs={"dropout": KEY})
    by_stream = layer.apply(variables, x, deterministic=False, rngs={"dropout": KEY})
    by_key = layer.apply(variables, x, deterministic=False, rng=KEY)
    assert by_stream.shape == by_key.shape
    assert np.max(np.abs(by_key - layer.apply(variables, x, deterministic=True))) > 0


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_learned_rate_cannot_start_at_an_end(rate):
    with pytest.raises(RequestError, match="cannot start"):
        L.ConcreteDropout(rate).init(KEY, jnp.ones((2, 3)), deterministic=True)
