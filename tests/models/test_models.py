"""The networks by name, against Flax's own layers; networks of a user's own."""

import re
import sys
import textwrap
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig, MlpConfig, recipe
from thinned.core.errors import RequestError
from thinned.data.facts import Facts
from thinned.dropout.sites import DropoutSpec, dropout_sites
from thinned.engine.build import Built, size_of
from thinned.models.catalog import CATALOG, STAGED, network
from thinned.models.convolution import max_pool

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 28, 28, 1)), jnp.float32)


def made(name: str, kind: str = "element", **mlp):
    return network(name, 10, DropoutSpec(kind), MlpConfig(**mlp))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Published, or by hand: weights and biases of every layer.
        ("cnn", 50_186),
        ("lenet", 61_706),
        ("mlp", 784 * 1024 + 1024 + 2 * (1024 * 1024 + 1024) + 1024 * 10 + 10),
        (
            "c20-c40-f1000-f1000",
            25 * 20 + 20 + 25 * 20 * 40 + 40 + 1960 * 1000 + 1000 + 1000 * 1000 + 1000 + 10_010,
        ),
    ],
)
def test_sizes_are_as_published(name, parameters):
    found, flops = size_of(name, (28, 28, 1), 10)
    assert found == parameters
    assert flops > parameters


SMALL = [name for name in CATALOG if name not in STAGED and "wide" not in name]
ALIKE = ("element", "gaussian", "alpha")
"""Kinds that networks give to the same layers; each network has one of them, all at night.

So has it one of the two that are layers of their own."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if k in (i % 3, 3 + i % 2) else pytest.mark.long)
        for i, name in enumerate(SMALL)
        for k, kind in enumerate((*ALIKE, "connect", "concrete"))
    ],
)
def test_every_network_has_named_sites_and_drops_in_training_only(name, kind):
    model, images = made(name, kind, hidden=(16, 12)), IMAGES[:2]
    sites = dropout_sites(model, images, train=True)
    if name in ("mlp", "lenet", "c20-c40-f1000-f1000") and kind != "connect":
        assert [site.rpartition("/")[2] for site in sites] == [
            "input",
            *(f"hidden_{i + 1}" for i in range(len(sites) - 1)),
        ]
    # Any numbers do, and need no program that draws them.
    shapes, numbers = (
        jax.eval_shape(model.init, jax.random.key(0), images),
        np.random.default_rng(0),
    )
    variables = jax.tree.map(
        lambda leaf: np.float32(numbers.uniform(0.05, 0.15, leaf.shape)), shapes
    )
    evaluated = jax.jit(model.apply)
    trained = jax.jit(partial(model.apply, train=True, mutable=["losses", "batch_stats"]))
    plain = evaluated(variables, images)
    drawn = [
        trained(variables, images, rngs={"dropout": key})[0]
        for key in jax.random.split(jax.random.key(1))
    ]
    assert plain.shape == (2, 10)
    assert np.array_equal(plain, evaluated(variables, images))
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("units", ["relu", "logistic", "maxout"])
def test_hidden_units_compute_what_their_names_say(units):
    model = made("mlp", hidden=(6, 5), units=units, pieces=3)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    x = np.asarray(IMAGES).reshape(3, -1)
    for layer in ("Dense_0", "Dense_1"):
        x = x @ np.asarray(params[layer]["kernel"]) + np.asarray(params[layer]["bias"])
        if units == "maxout":
            x = np.max(x.reshape(3, -1, 3), -1)
        else:
            x = np.maximum(x, 0) if units == "relu" else 1 / (1 + np.exp(-x))
    x = x @ np.asarray(params["Dense_2"]["kernel"]) + np.asarray(params["Dense_2"]["bias"])
    found = jax.jit(model.apply)({"params": params}, IMAGES)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


class PlainLeNet(nn.Module):
    """LeNet of Flax's layers alone, with the second convolution unpadded."""

    @nn.compact
    def __call__(self, x):
        for features, padding in ((6, "SAME"), (16, "VALID")):
            x = nn.max_pool(nn.relu(nn.Conv(features, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def test_lenet_is_flaxs_layers_in_values_and_gradients():
    params = jax.jit(made("lenet").init)(jax.random.key(0), IMAGES)["params"]

    @partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(params, model):
        return jnp.square(model.apply({"params": params}, IMAGES)).mean()

    ours = loss(params, made("lenet"))
    theirs = loss(params, PlainLeNet())
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for mine, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (1, 7, 5, 2)])
def test_the_largest_of_each_window_is_flaxs(shape):
    images = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    assert np.array_equal(max_pool(images), nn.max_pool(images, (2, 2), (2, 2)))


MODULE = """
    import equinox as eqx
    import jax
    from flax import linen as nn
    from flax import nnx
    from thinned import Dropout
    from thinned.equinox import Dropout as Leafy

    class Own(nn.Module):
        classes: int = 10

        @nn.compact
        def __call__(self, images, training):
            x = nn.relu(nn.Dense(16)(images.reshape(images.shape[0], -1)))
            x = nn.BatchNorm(use_running_average=not training)(x)
            x = Dropout(0.3, name="middle")(x, deterministic=not training)
            return nn.Dense(self.classes)(x)

    class Modern(nnx.Module):
        def __init__(self, classes, *, rngs):
            self.one = nnx.Linear(64, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.two = nnx.Linear(16, classes, rngs=rngs)

        def __call__(self, x):
            x = self.norm(nnx.relu(self.one(x.reshape(x.shape[0], -1))))
            return self.two(self.drop(x))

    class Leaf(eqx.Module):
        dense: eqx.nn.Linear
        middle: Leafy
        head: eqx.nn.Linear

        def __init__(self, classes, *, key):
            keys = jax.random.split(key)
            self.dense = eqx.nn.Linear(64, 16, key=keys[0])
            self.head = eqx.nn.Linear(16, classes, key=keys[1])
            self.middle = Leafy(0.3)

        def __call__(self, x, key):
            return self.head(self.middle(jax.nn.relu(self.dense(x.reshape(-1))), key=key))

    class Flaxes(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
            return nn.Dense(10)(x)

    class Needy(nn.Module):
        classes: int
        width: int

        def __call__(self, x):
            return x

    number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_nets", None)


@pytest.mark.parametrize("name", ["Own", "Modern", "Leaf"])
def test_networks_of_ones_own_train_evaluate_and_go_on(own, tiny_data, capsys, name):
    words = ["train", "--data", str(tiny_data), "--model", f"own_nets:{name}", "--name", name]
    assert main([*words, "--epochs", "1"]) == 0
    assert main(["train", "--resume", f"runs/{name}", "--epochs", "2"]) == 0
    assert main(["evaluate", f"runs/{name}"]) == 0
    assert main(["doctor", f"runs/{name}"]) == 0
    said = capsys.readouterr().out
    assert "epoch 2/2" in said
    assert "of 77 images" in said
    # Its own rate holds, since none was asked for; and it can be sampled.
    site, rate = ("drop", "0.5000") if name == "Modern" else ("middle", "0.3000")
    assert re.search(rf"{site} +element +16x16 +{rate}", said)
    assert main(["evaluate", f"runs/{name}", "--samples", "3"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nets:Nope", "has no attribute 'Nope'"),
        ("nowhere:Net", "No module named 'nowhere'"),
        ("own_nets:number", "is no Module of flax.linen, of flax.nnx or of equinox"),
        ("own_nets:Needy", "give every attribute but classes a default"),
        ("lnet", "did you mean lenet"),
        ("quite-another", "known: cnn"),
    ],
)
def test_networks_that_cannot_be_had_are_refused(own, name, message):
    with pytest.raises(RequestError, match=message):
        made(name)


def test_a_network_too_deep_for_the_images_or_without_maps_is_refused(tiny_data, capsys):
    words = ["train", "--data", str(tiny_data), "--model"]
    assert main([*words, "lenet"]) == 2
    assert "at least 12 x 12" in capsys.readouterr().err
    assert main([*words, "mlp", "--dropout.kind", "channel"]) == 2
    assert "model mlp has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("own_nets:Flaxes", "--dropout.rate 0.3", "has no layer of thinned"),
        ("own_nets:Flaxes", "--dropout.depth linear", "has no layer of thinned"),
        ("own_nets:Modern", "--dropout.rate 0.3", "has no layer of thinned"),
        ("own_nets:Leaf", "--dropout.kind alpha --dropout.bits fast", "networks of the package"),
        ("own_nets:Own", "--dropout.kind gaussian", "networks of the package only"),
        ("own_nets:Own", "--dropout.kind path", "networks of the package only"),
        ("own_nets:Own", "--dropout.bits threefry", "networks of the package only"),
        ("own_nets:Own", "--dropout.input-rate 0.1", "has no site input"),
        ("cnn", "--mlp.hidden 32", "the model is cnn"),
    ],
)
def test_options_that_reach_nothing_are_refused(own, tiny_data, capsys, model, words, message):
    wanted = ["train", "--data", str(tiny_data), "--model", model, *words.split()]
    assert main(wanted) == 2
    said = capsys.readouterr().err
    assert message in said
    assert words.split()[0] in said
    assert not (own / "runs").exists()


@pytest.mark.parametrize("name", ["Own", "Leaf"])
def test_options_that_reach_a_network_of_ones_own_are_not_refused(own, tiny_data, name):
    config = Config(
        data=DataConfig(path=str(tiny_data)),
        model=f"own_nets:{name}",
        dropout=DropoutConfig(rate=0.1, depth="linear", sites={"middle": 0.2}),
    )
    facts = Facts("", ("a", "b"), (8, 8, 1), 200)
    Built.of(config, facts)
    # What a recipe sets was asked by nobody.
    Built.of(replace(recipe("tutorial-as-printed"), model=f"own_nets:{name}"), facts)


def test_the_listing_has_all_networks(own, capsys):
    assert main(["models", "--size", "8", "--own", "own_nets:Own"]) == 0
    said = capsys.readouterr().out
    assert "at least 12 x 12" in said
    assert all(name in said for name in (*CATALOG, "own_nets:Own"))
