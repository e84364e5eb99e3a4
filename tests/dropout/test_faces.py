"""The same key, kind and rate give the same bits through every face of `functional`."""

import sys
from importlib import import_module
from importlib.util import find_spec

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import normal_values
from flax import nnx

import thinned.dropout.equinox as on_equinox
import thinned.dropout.linen as on_linen
import thinned.dropout.nnx as on_nnx
from thinned.core.errors import RequestError
from thinned.core.rng import key_for
from thinned.dropout import functional as F

KEY = jax.random.key(5)
MAPS = normal_values(6, 1, 6, 6, 4)
ROWS = normal_values(7, 1, 4)

KINDS = {
    "Dropout": ("dropout", {"bits": "fast"}),
    "ChannelDropout": ("channel_dropout", {}),
    "DropPath": ("drop_path", {"bits": "fast"}),
    "DropBlock": ("drop_block", {"block_size": 2, "broadcast_dims": (-1,)}),
    "GaussianDropout": ("gaussian_dropout", {"bits": "fast"}),
    "AlphaDropout": ("alpha_dropout", {}),
    "ConcreteDropout": ("concrete_dropout", {"temperature": 0.5}),
}


def with_linen(name, options, x):
    layer = getattr(on_linen, name)(0.4, deterministic=False, **options)
    variables = {"params": {"rate_logit": jnp.float32(F.start_logit(0.4))}}
    return layer.apply(variables if name == "ConcreteDropout" else {}, x, rng=KEY)


def with_nnx(name, options, x):
    return getattr(on_nnx, name)(0.4, **options)(x, rngs=KEY)


def with_equinox(name, options, x):
    if name not in ("ChannelDropout", "DropBlock"):
        return getattr(on_equinox, name)(0.4, **options)(x[0], key=KEY)[None]
    options = options | {
        "broadcast_dims": tuple(axis + 1 for axis in options.get("broadcast_dims", ()))
    }
    layer = getattr(on_equinox, name)(0.4, **options)
    return jnp.moveaxis(layer(jnp.moveaxis(x[0], -1, 0), key=KEY), 0, -1)[None]


@pytest.mark.parametrize("face", [with_linen, with_nnx, with_equinox])
@pytest.mark.parametrize("name", KINDS)
def test_every_face_gives_the_bits_of_the_function(name, face):
    function, options = KINDS[name]
    rate = jax.nn.sigmoid(jnp.float32(F.start_logit(0.4))) if "Concrete" in name else 0.4
    expected = getattr(F, function)(MAPS, rate, KEY, **options)
    found = face(name, options, MAPS)
    assert not np.array_equal(found, MAPS)
    assert np.array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("off", [False, True])
def test_every_face_drops_the_same_weights(off):
    linen = on_linen.DropConnectDense(3, 0.4, activation=jax.nn.relu, deterministic=off)
    kernel, bias = normal_values(0, 4, 3), jnp.asarray([0.1, 0.2, 0.3])
    given = {"params": {"kernel": kernel, "bias": bias}}
    expected = jax.jit(linen.apply)(given, ROWS, rng=KEY)
    given = {"activation": jax.nn.relu}
    layer = on_nnx.DropConnectDense(4, 3, 0.4, rngs=nnx.Rngs(0), deterministic=off, **given)
    layer.kernel[...], layer.bias[...] = kernel, bias
    np.testing.assert_allclose(layer(ROWS, rngs=KEY), expected, rtol=1e-6)
    own = on_equinox.DropConnectDense(4, 3, 0.4, off, key=KEY, **given)
    own = eqx.tree_at(lambda layer: (layer.weight, layer.bias), own, (kernel.T, bias))
    np.testing.assert_allclose(own(ROWS[0], key=KEY)[None], expected, rtol=1e-6)


def test_every_face_regularises_a_learned_rate_alike():
    kernel = normal_values(0, 4, 3)
    expected = F.concrete_regulariser(jnp.float32(0.4), kernel, 4, 100)
    layer = on_nnx.ConcreteDropout(0.4, examples=100)
    layer.regularise(kernel, 4)
    np.testing.assert_allclose(layer.penalty[...], expected, rtol=1e-4)
    own = on_equinox.ConcreteDropout(0.4, examples=100).regulariser(kernel.T, 4)
    np.testing.assert_allclose(own, expected, rtol=1e-4)


# NNX.


class Net(nnx.Module):
    def __init__(self, rngs, layer=on_nnx.Dropout):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.one = layer(0.3, rngs=rngs)
        self.two = layer(0.6, rngs=rngs)

    def __call__(self, x):
        return self.two(self.one(self.dense(x)))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_masks_are_those_of_flax_nnx(rate):
    ones, found = jnp.ones((4, 6)), []
    for layer in (on_nnx.Dropout, nnx.Dropout):
        rngs = nnx.Rngs(0, dropout=1)
        own = layer(rate, rngs=rngs)
        free = layer(rate, broadcast_dims=(1,))
        outputs = [own(ones), own(ones), own(ones, deterministic=True)]
        outputs += [free(ones, rngs=source) for source in (rngs, rngs.dropout, KEY)]
        own.eval()
        found.append([*outputs, own(ones)])
    for ours, theirs in zip(*found, strict=True):
        assert np.array_equal(ours == 0, theirs == 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_rates_are_an_argument_and_no_parameter():
    model, traces = Net(nnx.Rngs(0)), []
    graph, rates, rest = nnx.split(model, on_nnx.Rate, ...)

    @jax.jit
    def step(rates, rest):
        traces.append(1)
        return nnx.merge(graph, rates, rest)(jnp.ones((64, 4)))

    def at(rate):
        return np.mean(
            np.asarray(step(jax.tree.map(lambda _: jnp.float32(rate), rates), rest)) == 0
        )

    kept = [at(rate) for rate in (0.0, 0.1, 0.2, 0.5, 0.9, 1.0)]
    assert len(traces) == 1
    assert kept[0] == 0
    assert kept[-1] == 1
    assert all(np.diff(kept) > 0)
    assert list(nnx.to_pure_dict(nnx.state(model, nnx.Param))) == ["dense"]


def test_streams_are_keyed_by_the_step_and_their_place():
    graph, state = nnx.split(Net(nnx.Rngs(0)))

    @jax.jit
    def step(state, number):
        model = nnx.merge(graph, state)
        on_nnx.rekey(model, key_for(3, "dropout", number))
        x = jnp.ones((8, 8))
        return model.one(x) == 0, model.two(x) == 0, model.one(x) == 0

    first, again, other = (step(state, number) for number in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))
    one, two, second = first
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, second)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: on_nnx.Dropout(0.5)(ROWS), "no key: give rngs= to the layer or to its call"),
        (lambda: on_nnx.Dropout(0.5, deterministic=None)(ROWS), "deterministic is given nowhere"),
        (lambda: on_nnx.Dropout(0.5)(ROWS, deterministic="no"), "must be True or False"),
        (lambda: on_nnx.Dropout(1.5), "rate is 1.5"),
        (lambda: on_nnx.Dropout(0.5)(ROWS, rngs="key"), "a key is expected"),
        (lambda: on_nnx.ConcreteDropout(1.0), "a learned rate cannot start at 1.0"),
        (lambda: on_equinox.Dropout(0.5)(ROWS), "no key: call it with key="),
        (lambda: on_equinox.Dropout(0.5)(ROWS, inference="no"), "must be a bool"),
        (lambda: on_equinox.Dropout(float("nan")), "rate is nan"),
        (lambda: on_equinox.Dropout(broadcast_dims=(7,))(ROWS, key=KEY), "broadcast_dims has axis"),
    ],
)
def test_nonsense_is_refused(call, said):
    with pytest.raises(RequestError, match=said):
        call()


# Equinox.


class Mlp(eqx.Module):
    dense: eqx.nn.Linear
    drop: on_equinox.Dropout

    def __init__(self, key):
        self.dense, self.drop = eqx.nn.Linear(4, 64, key=key), on_equinox.Dropout(0.3)

    def __call__(self, x, *, key=None):
        return self.drop(self.dense(x), key=key)


def test_rate_and_inference_are_not_trained():
    model = Mlp(KEY)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    assert [leaf.shape for leaf in jax.tree.leaves(arrays)] == [(64, 4), (64,)]
    grads = eqx.filter_jit(eqx.filter_grad(lambda model: model(ROWS[0], key=KEY).sum()))(model)
    tx = optax.adamw(0.1, weight_decay=0.5)
    updates, _ = jax.jit(tx.update)(grads, tx.init(arrays), arrays)
    after = eqx.apply_updates(model, updates)
    assert (after.drop.rate, after.drop.inference) == (0.3, False)
    assert not np.array_equal(after.dense.weight, model.dense.weight)


def test_masks_are_those_of_equinox_and_are_off_at_inference():
    ones = jnp.ones((5, 7))
    found, expected = (layer(0.3)(ones, key=KEY) for layer in (on_equinox.Dropout, eqx.nn.Dropout))
    assert np.array_equal(found == 0, expected == 0)
    model = eqx.nn.inference_mode(Mlp(KEY))
    assert np.array_equal(model(ROWS[0]), model.dense(ROWS[0]))


def test_a_traced_rate_can_be_put_in_place():
    model, traces = Mlp(KEY), []

    @eqx.filter_jit
    def step(model, rate):
        traces.append(1)
        thinned = eqx.tree_at(lambda model: model.drop.rate, model, rate)
        return jnp.mean(thinned(ROWS[0], key=KEY) == 0)

    dropped = [float(step(model, jnp.float32(rate))) for rate in (0.0, 0.3, 0.6, 1.0)]
    assert len(traces) == 1
    assert dropped == sorted(dropped)
    assert (dropped[0], dropped[-1]) == (0, 1)


def test_a_missing_equinox_is_said_in_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "thinned.dropout.equinox")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "equinox" else find_spec(name)
    )
    with pytest.raises(RequestError, match=r"thinned\[equinox\]"):
        import_module("thinned.dropout.equinox")
