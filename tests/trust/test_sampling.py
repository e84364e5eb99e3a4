"""Monte Carlo dropout: the trunk runs once, samples are those of a loop, everything else stays."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import uniform_values
from flax import linen as nn
from scipy import special

import thinned
from thinned.core.errors import RequestError
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.dropout.sites import DropoutSpec
from thinned.models.apply import predict
from thinned.models.cnn import CNN
from thinned.models.resnet import ResNet
from thinned.trust.partition import split_by_key
from thinned.trust.sampling import (
    Predictions,
    averaged,
    entropy_of,
    look_at,
    of_logits,
    sample_logits,
    sample_predictions,
    sampled_in_parts,
)

X = uniform_values(0, 7, 16, 16, 3)
KEY = jax.random.key(5)


class Own(nn.Module):
    """A module of a reader's own: Flax's dropout, in two places, and batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x)))


class Wrapped(nn.Module):
    """The same, inside the transforms that people wrap networks in."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.jit(nn.remat(Own, static_argnums=2), static_argnums=2)(name="own")(x, train)


class Curved(nn.Module):
    """Values that are random only after a maximum: a head that no matrix can stand for."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(4)(nn.relu(x))


class Rounded(nn.Module):
    """A head whose derivatives are constant although it is not affine."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(4)(x + jax.lax.stop_gradient(jnp.round(4 * x) / 4))


class Joined(nn.Module):
    """Two values meet the key, and one goes past it."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        drop = thinned.DropPath(0.5, deterministic=not train)
        return nn.Dense(4)(x) + drop(nn.Dense(4)(nn.relu(nn.Dense(8)(x))))


@cache
def started(model, seed=1):
    return jax.jit(model.init)(jax.random.key(seed), X)


@cache
def one_by_one(model):
    @jax.jit
    def sample(variables, image, index):
        with dropout_on():
            rngs = {"dropout": jax.random.fold_in(KEY, index)}
            return model.apply(variables, image[None], train=False, rngs=rngs)[0]

    return sample


def naive(model, variables, samples, images=X):
    """One sample after another, and one image: the whole network each time."""
    run = one_by_one(model)
    logits = [
        [np.asarray(run(variables, image, index)) for image in images] for index in range(samples)
    ]
    return special.softmax(np.asarray(logits, np.float64), -1)


MODELS = {
    "cnn": CNN(4),
    "resnet-path": ResNet(4, DropoutSpec("path")),
    "resnet-connect": ResNet(4, DropoutSpec("connect")),
    "own": Own(),
    "wrapped": Wrapped(),
    "curved": Curved(),
    "rounded": Rounded(),
    "joined": Joined(),
}
SINGLY = ("own", "curved")
"""One with a matrix for its head and one without: a single sample is no matter of the network."""


@pytest.mark.parametrize(
    ("model", "samples"),
    [
        pytest.param(
            model,
            samples,
            id=f"{name}-{samples}",
            marks=() if samples > 1 or name in SINGLY else pytest.mark.long,
        )
        for name, model in MODELS.items()
        for samples in (1, 6)
    ],
)
def test_samples_are_those_of_the_naive_loop(model, samples):
    variables = started(model)
    found = sample_predictions(model.apply, variables, X, KEY, samples)
    each = naive(model, variables, samples)
    np.testing.assert_allclose(found.probabilities, each.mean(0), atol=1e-5)
    entropy = -np.sum(each * np.log(each), -1).mean(0)
    np.testing.assert_allclose(found.expected_entropy, entropy, atol=1e-5)
    if samples > 1:
        top = each.mean(0).argmax(1)
        tops = each[:, np.arange(7), top]
        np.testing.assert_allclose(found.deviation, tops.std(0, ddof=1), atol=1e-6)
        assert np.all(found.mutual_information >= 0)
    assert found.samples == samples


def test_what_is_said_without_a_part_of_the_samples_is_what_the_others_say():
    model = MODELS["own"]
    found = sampled_in_parts(model.apply, started(model), X, KEY, 6, 4)
    each = naive(model, started(model), 6)
    assert [made.samples for made in found] == [6, 4, 4, 5, 5]
    for made, kept in zip(found, [range(6), *left_out(6, 4)], strict=True):
        np.testing.assert_allclose(made.probabilities, each[kept].mean(0), atol=1e-5)
        entropy = entropy_of(each[kept]).mean(0)
        np.testing.assert_allclose(made.expected_entropy, entropy, atol=1e-5)
        told = made.told
        assert told.predicted.tolist() == each[kept].mean(0).argmax(1).tolist()
        np.testing.assert_allclose(told.mutual_information, told.entropy - entropy, atol=1e-5)
    # The energy of all is a mean of those without each of three equal parts.
    _, *others = sampled_in_parts(model.apply, started(model), X, KEY, 6, 3)
    mean = np.mean([other.energy for other in others], 0)
    np.testing.assert_allclose(mean, found[0].energy, rtol=1e-5)


def left_out(samples, parts):
    return [[place for place in range(samples) if place % parts != part] for part in range(parts)]


def network_of(model):
    def network(key, variables, image):
        with dropout_on():
            return model.apply(variables, image[None], rngs={"dropout": key})[0]

    return network


def test_what_does_not_depend_on_the_key_runs_once():
    """The head that is left of the CNN holds no convolution and takes the last map."""
    model = CNN(4)
    variables = started(model)
    network = network_of(model)
    parted = split_by_key(network, KEY, variables, X[0])
    assert parted.random
    fixed, varying = jax.jit(parted.trunk)(variables, X[0])
    text = str(jax.make_jaxpr(parted.head)(fixed, varying, KEY))
    assert "conv_general" not in text
    assert "dot_general" in text
    assert [value.size for value in varying] == [4 * 4 * 64]
    expected, found = jax.jit(network)(KEY, variables, X[0]), jax.jit(parted.head)
    np.testing.assert_allclose(found(fixed, varying, KEY), expected, rtol=1e-5)


def test_the_head_says_how_wide_it_is():
    """Of what it makes of an image: masks, which all images share, do not count."""
    parted = split_by_key(network_of(Curved()), KEY, started(Curved()), X[0])
    # 8 hidden values and 4 classes.
    assert parted.width == 8
    mask = split_by_key(lambda key, x, y: jax.random.uniform(key, (9,)).sum() * y, KEY, 1.0, 2.0)
    assert mask.width == 1


@pytest.mark.parametrize("room", [1, 7 * 8 * 2, 1 << 19])
def test_samples_do_not_depend_on_how_many_are_computed_at_once(room, monkeypatch):
    model = Curved()
    variables = started(model)
    monkeypatch.setattr("thinned.trust.sampling._IN_CACHE", room)
    logits = sample_logits(model.apply, variables, X, KEY, 6)
    each = naive(model, variables, 6)
    np.testing.assert_allclose(special.softmax(np.asarray(logits), -1), each, atol=1e-6)


def test_a_function_without_randomness_is_all_trunk():
    parted = split_by_key(lambda key, x, y: x * y, KEY, 2.0, jnp.arange(3.0))
    assert not parted.random
    assert parted.head(*parted.trunk(2.0, jnp.arange(3.0)), KEY).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("model", "affine"),
    [
        (CNN(4), True),
        (CNN(4, DropoutSpec("gaussian")), True),
        (CNN(4, DropoutSpec("block")), True),
        (ResNet(4, DropoutSpec("path")), False),
        (Own(), True),
        (Wrapped(), True),
        (Joined(), True),
        (Curved(), False),
        (Rounded(), False),
        (CNN(400), False),
    ],
    ids=[
        "cnn",
        "gaussian",
        "block",
        "resnet",
        "own",
        "wrapped",
        "joined",
        "curved",
        "rounded",
        "many classes",
    ],
)
def test_heads_become_matrices_just_where_they_are_affine(model, affine):
    variables = started(model)
    assert look_at(model.apply, variables, X[0]) == (True, affine)


def test_rates_beside_the_network_say_how_much_is_dropped():
    model = CNN(4)
    variables = started(model)
    off = {**variables, "rates": {"Dropout_0": {"rate": jnp.float32(0)}}}
    found = sample_predictions(model.apply, off, X, KEY, 5)
    np.testing.assert_allclose(found.probabilities, predict(model.apply, variables, X), atol=1e-5)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-6)
    assert np.all(found.mutual_information < 1e-5)


def test_an_images_prediction_does_not_depend_on_those_beside_it():
    model = CNN(4)
    variables = started(model)
    many = jnp.concatenate([X] * 150)
    whole = sample_predictions(model.apply, variables, many, KEY, 3).probabilities
    np.testing.assert_allclose(whole, np.concatenate([whole[:7]] * 150), atol=1e-6)
    alone = sample_predictions(model.apply, variables, X[3:4], KEY, 3).probabilities
    np.testing.assert_allclose(whole[3:4], alone, atol=1e-6)


def test_what_cannot_be_sampled_is_refused():
    model = CNN(4)
    variables = started(model)
    with pytest.raises(RequestError, match="samples is 0"):
        sample_predictions(model.apply, variables, X, KEY, 0)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    plain = Plain()
    with pytest.raises(RequestError, match="drops nothing"):
        sample_predictions(plain.apply, started(plain), X, KEY, 3)


def test_an_ensemble_is_the_mean_of_its_members():
    members = []
    for seed in range(3):
        model = CNN(4)
        variables = started(model, seed)
        members.append(sample_predictions(model.apply, variables, X, KEY, 4))
    found = averaged(members)
    expected = np.mean([member.probabilities for member in members], 0)
    np.testing.assert_allclose(found.probabilities, expected)
    assert found.samples == 12
    np.testing.assert_allclose(averaged(members[:1]).deviation, members[0].deviation)


def test_an_ensembles_deviation_is_of_the_class_that_it_predicts():
    random = np.random.default_rng(0)
    samples = random.dirichlet([2.0, 1.5, 1.0], (2, 50, 6))
    # The second member is sure of another class than the ensemble in the end.
    samples[1] = samples[1][..., ::-1]
    members = [
        Predictions(
            drawn.mean(0),
            np.take_along_axis(drawn.std(0, ddof=1), drawn.mean(0).argmax(1)[:, None], 1)[:, 0],
            np.zeros(6),
            np.zeros(6),
            50,
            drawn.var(0, ddof=1),
        )
        for drawn in samples
    ]
    found = averaged(members)
    top = found.probabilities.argmax(1)
    assert any((member.probabilities.argmax(1) != top).any() for member in members)
    own = samples[:, :, np.arange(6), top]
    expected = np.sqrt(own.var(1, ddof=1).mean(0) + own.mean(1).var(0))
    np.testing.assert_allclose(found.deviation, expected, rtol=1e-6)


@pytest.mark.parametrize("count", [10, 30])
def test_mutual_information_is_low_by_about_a_part_of_one_over_the_samples(count):
    random = np.random.default_rng(1)
    drawn = random.dirichlet(np.full(10, 3.0), (400, 3000))

    def mean_of(samples):
        return float(np.mean(entropy_of(samples.mean(1)) - entropy_of(samples).mean(1)))

    few = np.mean([mean_of(drawn[:, i : i + count]) for i in range(0, 3000 - count, count)])
    assert few / mean_of(drawn) == pytest.approx(1 - 1 / count, abs=0.2 / count)


def test_what_logits_say_is_what_scipy_says_of_them_however_large_they_are():
    logits = np.random.default_rng(0).normal(0, 300, (6, 9, 4)).astype(np.float32)
    found, wide = of_logits(logits), logits.astype(np.float64)
    p = special.softmax(wide, 2)
    np.testing.assert_allclose(found.energy, -special.logsumexp(wide, 2).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.probabilities, p.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.expected_entropy, special.entr(p).sum(2).mean(0), atol=1e-14)
    np.testing.assert_allclose(found.variances, p.var(0, ddof=1), rtol=1e-6, atol=1e-30)
