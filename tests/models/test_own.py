"""Networks of NNX and Equinox as Linen modules: they do what their Linen twin does."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import uniform_values
from flax import linen as nn
from flax import nnx

import thinned.equinox
import thinned.nnx
from thinned.core.errors import RequestError
from thinned.data.batch import Batch
from thinned.dropout.audit.front import audit
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.dropout.linen import Dropout
from thinned.dropout.sites import dropout_sites, rates_collection
from thinned.engine.step import create_state, train_step
from thinned.models.own import EquinoxNetwork, NnxNetwork
from thinned.trust.sampling import sample_predictions

KEY = jax.random.key(2)
X = uniform_values(3, 6, 4, 4, 1)
RNGS = {"dropout": KEY}


class Counted(Dropout):
    """As a stream of NNX, which folds the count of its draws into the key."""

    @nn.nowrap
    def drop(self, inputs, rate, key):
        return super().drop(inputs, rate, jax.random.fold_in(key, 0))


class Twin(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(12, name="one")(x.reshape(len(x), -1)))
        x = Counted(0.3, name="zero", deterministic=not train)(x)
        x = Counted(0.5, name="more", deterministic=not train)(x)
        return nn.Dense(3, name="two")(x)


class WithNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.one, self.two = nnx.Linear(16, 12, rngs=rngs), nnx.Linear(12, 3, rngs=rngs)
        self.zero, self.more = (thinned.nnx.Dropout(rate, rngs=rngs) for rate in (0.3, 0.5))

    def __call__(self, x):
        x = nnx.relu(self.one(x.reshape(len(x), -1)))
        return self.two(self.more(self.zero(x)))


class WithEquinox(eqx.Module):
    one: eqx.nn.Linear
    two: eqx.nn.Linear
    drops: list

    def __init__(self, *, key):
        keys = jax.random.split(key)
        self.one = eqx.nn.Linear(16, 12, key=keys[0])
        self.two = eqx.nn.Linear(12, 3, key=keys[1])
        self.drops = [thinned.equinox.Dropout(0.3), thinned.equinox.Dropout(0.5)]

    def __call__(self, x, *, key):
        x = jax.nn.relu(self.one(x.reshape(-1)))
        for drop, own in zip(self.drops, jax.random.split(key), strict=True):
            x = drop(x, key=own)
        return self.two(x)


class Told(WithNnx):
    """Its layers are told in each call."""

    def __call__(self, x, deterministic):
        x = nnx.relu(self.one(x.reshape(len(x), -1)))
        return self.two(self.zero(x, deterministic=deterministic))


ON_NNX, ON_EQUINOX = NnxNetwork(WithNnx), EquinoxNetwork(WithEquinox, True)


TOLD = NnxNetwork(Told, "deterministic")


@pytest.fixture(scope="module")
def variables():
    return {model: jax.jit(model.init)(KEY, X) for model in (ON_NNX, ON_EQUINOX, TOLD)}


@partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(model, variables, key=KEY, train=False):
    return model.apply(variables, X, train=train, rngs={"dropout": key})


def test_an_nnx_network_does_what_its_linen_twin_does(variables):
    own = variables[ON_NNX]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(
        jnp.shape, jax.eval_shape(Twin().init, KEY, X)
    )
    at = {**own, "rates": rates_collection({"zero": 0.7, "more": 0.1})}
    for given in (own, at):
        for train in (False, True):
            found, twin = (apply(model, given, train=train) for model in (ON_NNX, Twin()))
            np.testing.assert_allclose(found, twin, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(apply(ON_NNX, own, train=True), apply(ON_NNX, at, train=True))


def test_an_equinox_network_is_called_for_each_image(variables):
    given = variables[ON_EQUINOX]
    kernels = {
        name: {"kernel": part["weight"].T, "bias": part["bias"]}
        for name, part in given["params"].items()
    }
    expected = apply(Twin(), {"params": kernels})
    np.testing.assert_allclose(apply(ON_EQUINOX, given), expected, rtol=1e-5, atol=1e-6)
    gone = {**given, "rates": rates_collection({"drops/0": 1.0})}
    bias = jnp.broadcast_to(given["params"]["two"]["bias"], (6, 3))
    np.testing.assert_allclose(apply(ON_EQUINOX, gone, train=True), bias, rtol=1e-6)
    first, again, other = (
        apply(ON_EQUINOX, given, key, train=True) for key in (KEY, KEY, jax.random.key(9))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("model", "names"), [(ON_NNX, ["zero", "more"]), (ON_EQUINOX, ["drops/0", "drops/1"])]
)
def test_sites_come_in_the_order_of_the_call_and_are_audited(model, names, variables):
    sites = dropout_sites(model, X, train=True)
    assert list(sites) == names
    np.testing.assert_allclose([site.rate for site in sites.values()], [0.3, 0.5], rtol=1e-6)
    keys = lambda step: {"dropout": jax.random.fold_in(KEY, step)}  # noqa: E731
    found = audit(model, X, variables=variables[model], rngs=keys, init_rngs=KEY, draws=8)
    assert found.passed, str(found)
    assert [site.name for site in found.sites] == names
    frozen = audit(model, X, variables=variables[model], rngs=lambda step: RNGS, draws=8)
    assert {check.question for check in frozen.failures()} == {"masks change from step to step"}


@pytest.mark.parametrize("model", [ON_NNX, ON_EQUINOX, TOLD])
def test_samples_are_those_of_the_naive_loop(model, variables):
    given = variables[model]

    def one(image, index):
        with dropout_on():
            rngs = {"dropout": jax.random.fold_in(KEY, index)}
            return model.apply(given, image[None], train=False, rngs=rngs)[0]

    each = jax.nn.softmax(jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(X, jnp.arange(3)))
    found = sample_predictions(model.apply, given, X, KEY, 3)
    np.testing.assert_allclose(found.probabilities, np.mean(each, 0), atol=1e-6)
    assert np.all(found.deviation > 0)


class Odd(nnx.Module):
    """Dropout of Flax, attention that drops, state of its own, and a list."""

    def __init__(self, *, rngs):
        self.attend = nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x, training):
        x = self.attend(x[..., 0], rngs=self.rngs if training else None)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(1)


def test_what_is_not_ours_draws_by_the_step_and_keeps_its_statistics():
    model = NnxNetwork(Odd, "training")
    variables = jax.jit(model.init)(KEY, X)
    assert not dropout_sites(model, X, train=True)
    step = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    (one, after), (again, _), (other, _) = (
        step(variables, X, rngs={"dropout": key}) for key in (KEY, KEY, jax.random.key(8))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(
        after["batch_stats"]["norm"]["mean"], variables["batch_stats"]["norm"]["mean"]
    )
    with pytest.raises(RequestError, match="drops in training only"):
        sample_predictions(model.apply, variables, X, KEY, 2)


class LearnedNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.drop = thinned.nnx.ConcreteDropout(0.2, examples=10, rngs=rngs)
        self.dense = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        self.drop.regularise(self.dense.kernel[...], 16)
        return self.dense(self.drop(x.reshape(len(x), -1)))


class LearnedEquinox(eqx.Module):
    drop: thinned.equinox.ConcreteDropout
    dense: eqx.nn.Linear

    def __init__(self, key):
        self.drop = thinned.equinox.ConcreteDropout(0.2, examples=10)
        self.dense = eqx.nn.Linear(16, 3, key=key)

    def __call__(self, x, key):
        return self.dense(self.drop(x.reshape(-1), key=key))

    def losses(self):
        return self.drop.regulariser(self.dense.weight, 16)


@pytest.mark.parametrize("model", [NnxNetwork(LearnedNnx), EquinoxNetwork(LearnedEquinox, True)])
def test_a_learned_rate_is_kept_in_place(model):
    assert dropout_sites(model, X, train=True)["drop"].learned
    state = create_state(model, X, KEY, optax.sgd(1.0))
    # Labels that say nothing: what moves the rate up is the regulariser's entropy.
    batch = Batch(X, jnp.zeros(6, jnp.int32))
    after, _ = jax.jit(train_step)(state, batch, {}, KEY)
    assert after.params["drop"]["rate_logit"] > state.params["drop"]["rate_logit"]


class Stateful(eqx.Module):
    one: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: thinned.equinox.Dropout
    two: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.one = eqx.nn.Linear(16, 12, key=first)
        self.norm = eqx.nn.BatchNorm(12, "images", mode="batch", momentum=0.5)
        self.drop = thinned.equinox.Dropout(0.5)
        self.two = eqx.nn.Linear(12, 3, key=second)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.one(x.reshape(-1)), state)
        return self.two(self.drop(jax.nn.relu(x), key=key)), state


def test_the_state_of_an_equinox_network_is_carried():
    model = EquinoxNetwork(Stateful, True)
    off = {"drop": {"rate": jnp.float32(0)}}
    start = create_state(model, X, KEY, optax.sgd(0.0))
    state, _ = jax.jit(train_step)(start, Batch(X, jnp.zeros(6, jnp.int32)), off, KEY)
    given = {"params": state.params, **state.model_state}

    whole, held = eqx.nn.make_with_state(Stateful)(KEY)
    part = state.params
    whole = eqx.tree_at(
        lambda net: (net.one.weight, net.one.bias, net.two.weight, net.two.bias),
        whole,
        (part["one"]["weight"], part["one"]["bias"], part["two"]["weight"], part["two"]["bias"]),
    )

    @eqx.filter_jit
    def run(whole, held, inference):
        whole = eqx.nn.inference_mode(eqx.tree_at(lambda net: net.drop.rate, whole, 0.0), inference)
        call = jax.vmap(partial(whole, key=KEY), (0, None), (0, None), axis_name="images")
        return call(jnp.moveaxis(X, -1, 1), held)

    _, held = run(whole, held, False)
    mean, variance = held.get(whole.norm.batch_state_index)
    own = state.model_state["batch_stats"]["norm"]
    np.testing.assert_allclose(own["batch_state_index"]["0"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own["batch_state_index"]["1"], variance, rtol=1e-5, atol=1e-6)
    assert own["batch_counter"] == 1
    logits, after = model.apply(given, X, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, run(whole, held, True)[0], rtol=1e-4, atol=1e-5)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after, state.model_state))
    assert list(dropout_sites(model, X, train=True)) == ["drop"]
    sampled = sample_predictions(model.apply, given, X, KEY, 3)
    assert sampled.deviation.min() > 0


def test_what_equinox_cannot_have_is_refused():
    class Silent(LearnedEquinox):
        losses = None

    with pytest.raises(RequestError, match="give it a method losses"):
        jax.eval_shape(EquinoxNetwork(Silent, True).init, KEY, X)
