"""Affine is what consists of affine operations: no derivative and no single image tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import uniform_values
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from thinned import Dropout
from thinned.core.errors import RequestError
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.trust.sampling import look_at, sample_predictions

KEY = jax.random.key(5)
# The first image is dark: behind any threshold it lies on the flat side.
X = uniform_values(0, 5, 2, 2, 3).at[0].set(0.0)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def clipped_straight_through(x):
    return jnp.clip(x, 0, 1)


clipped_straight_through.defjvps(lambda t, _, __: t)


@jax.custom_vjp
def halved(x):
    return 0.5 * x


halved.defvjp(lambda x: (0.5 * x, None), lambda _, g: (g,))


def straight_through(x):
    return x + jax.lax.stop_gradient(jnp.round(4 * x) / 4 - x)


AFFINE = {
    "reshape": lambda x: x.reshape(-1, 2, 4).transpose(0, 2, 1).reshape(-1, 8),
    "moved": lambda x: jnp.concatenate([x[:, 4:], jnp.flip(x[:, :4], 1)], 1),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 1)), constant_values=3)[:, :-2],
    "gathered": lambda x: x[:, jnp.array([3, 1, 4, 1, 5, 7, 2, 6])],
    "set": lambda x: x.at[:, 2].set(0.3).at[:, 0].add(1),
    "chosen": lambda x: jnp.where(jnp.arange(8) > 3, x, 2.0),
    "summed": lambda x: jnp.cumsum(x, 1) - x.mean(1, keepdims=True) / 3,
    "stacked": lambda x: jnp.split(x, 2, 1)[0].repeat(2, 1) - 2 * x,
    "reversed": reversed_gradient,
    "halved": halved,
    "remat": jax.checkpoint(lambda x: 2 * x + 1),
    "jit": jax.jit(lambda x: 1 - x),
}
CURVED = {
    "threshold": lambda x: (x > 0.4).astype(x.dtype),
    "round": lambda x: jnp.round(4 * x) / 4,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "sign": jnp.sign,
    "whole": lambda x: x.astype(jnp.int32).astype(x.dtype),
    "eight bits": lambda x: x.astype(jnp.float8_e4m3fn).astype(x.dtype),
    "straight": straight_through,
    "clipped": clipped_straight_through,
    "shifted": lambda x: x + jax.lax.stop_gradient(x),
    "relu": nn.relu,
    "softmax": nn.softmax,
    "pool": lambda x: nn.max_pool(x[..., None], (2,), (2,), "SAME")[..., 0].repeat(2, 1),
    "normed": lambda x: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 0.1),
    "squared": lambda x: x * x,
    "product": lambda x: x * x[:, ::-1],
    "divisor": lambda x: 1 / (3 + x),
    "sorted": lambda x: jnp.sort(x, 1),
    "place": lambda x: x[:, jnp.argmax(x, 1)[0]][:, None] + 0 * x,
    "chosen by itself": lambda x: jnp.where(x > 0.4, x, 0.0),
}
OPERATIONS = {**AFFINE, **CURVED}


class Network(nn.Module):
    """Named operations in a row: 8 features in, 8 out, of which the first 3 are logits."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        for name in self.names:
            if name == "dense":
                x = nn.Dense(8)(x)
            elif name == "drop":
                x = nn.Dropout(0.4, deterministic=not train)(x)
            elif name == "noise":
                x = Dropout(0.4, deterministic=not train)(x)
            else:
                x = OPERATIONS[name](x)
        return 4 * x[:, :3]


def naive(model, variables, samples):
    def sample(image, index):
        with dropout_on():
            rngs = {"dropout": jax.random.fold_in(KEY, index)}
            return model.apply(variables, image[None], train=False, rngs=rngs)[0]

    each = jax.jit(lambda index: jax.lax.map(lambda image: sample(image, index), X))
    logits = jnp.stack([each(index) for index in range(samples)])
    return np.asarray(jax.nn.softmax(logits), np.float64)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_behind_dropout_are_affine_or_not(name):
    model = Network(("drop", name, "dense"))
    variables = model.init(KEY, X)
    assert look_at(model.apply, variables, X[0]) == (True, name in AFFINE)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["dense", "drop", "noise", *OPERATIONS]), max_size=5))
def test_random_networks_are_sampled_as_one_by_one(names):
    model = Network((*names, "drop", "dense"))
    variables = jax.jit(model.init)(jax.random.key(1), X)
    found = sample_predictions(model.apply, variables, X, KEY, 2)
    each = naive(model, variables, 2)
    np.testing.assert_allclose(found.probabilities, each.mean(0), atol=1e-5)


@settings(max_examples=5)
@given(st.lists(st.sampled_from(["dense", "drop", *AFFINE]), min_size=2, max_size=5))
def test_matrices_give_what_networks_compute_whatever_their_gradients_say(names):
    model = Network(("relu", "drop", *names))
    variables = jax.jit(model.init)(jax.random.key(1), X)
    assert look_at(model.apply, variables, X[0]) == (True, True)
    found = sample_predictions(model.apply, variables, X, KEY, 2)
    each = naive(model, variables, 2)
    np.testing.assert_allclose(found.probabilities, each.mean(0), atol=1e-5)


class Guarded(nn.Module):
    """Dropout that is not even called in evaluation."""

    everywhere: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if self.everywhere:
            x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(8)(x))
        if train:
            x = nn.Dropout(0.5, deterministic=False, name="guarded")(x)
        return nn.Dense(3)(x)


class Homemade(nn.Module):
    """Dropout written by hand, beside a layer that can be sampled."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        if train:
            x = jnp.where(jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape), x, 0)
        return nn.Dense(3)(x)


class HandedOver(nn.Module):
    """A key that the module draws itself, for a layer that can be sampled."""

    @nn.compact
    def __call__(self, x, train=False):
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train, rng=key)
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (Guarded(), "guarded"),
        (Guarded(everywhere=True), "guarded"),
        (nn.Sequential([Guarded(True)]), "layers_0/guarded"),
        (Homemade(), "Homemade"),
    ],
)
def test_dropout_that_only_training_calls_is_named(model, place):
    variables = Guarded(True).init(KEY, X) if isinstance(model, Guarded) else model.init(KEY, X)
    with pytest.raises(RequestError, match=f"^{place}: .*deterministic=not train"):
        sample_predictions(model.apply, variables, X, KEY, 2)


def test_a_key_handed_to_a_layer_is_no_reason_to_refuse():
    model = HandedOver()
    assert look_at(model.apply, model.init(KEY, X), X[0]) == (True, True)


def test_a_network_is_looked_at_once():
    model = Network(("drop", "dense", "dense"))
    variables, calls = model.init(KEY, X), []

    def apply(*given, **options):
        calls.append(1)
        return model.apply(*given, **options)

    first, traced = look_at(apply, variables, X[0]), len(calls)
    other = jax.tree.map(lambda leaf: 2 * leaf, variables)
    assert look_at(apply, other, X[1]) == first
    assert len(calls) == traced
    look_at(apply, variables, X[0].astype(jnp.bfloat16))
    assert len(calls) > traced
