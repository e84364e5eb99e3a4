"""Monte Carlo dropout: the trunk runs once, samples are those of a loop, everything else stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from thinned import sampling
from thinned.dropout.recording import dropout_on
from thinned.dropout.sites import DropoutSpec
from thinned.errors import RequestError
from thinned.models.cnn import CNN
from thinned.models.resnet import ResNet
from thinned.predict import predict
from thinned.sampling import averaged, sample_predictions, split_by_key

X = jax.random.uniform(jax.random.key(0), (7, 16, 16, 3))
KEY = jax.random.key(5)


class Own(nn.Module):
    """A module of a reader's own: Flax's dropout, in two places, and batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x)))


def naive(model, variables, samples, images=X):
    """One sample after another, the whole network each time."""
    block = jax.random.fold_in(KEY, 0)
    padded = jnp.concatenate(
        [images, jnp.broadcast_to(images[:1], (sampling.BLOCK - len(images), *images.shape[1:]))]
    )
    found = []
    for index in range(samples):
        with dropout_on():
            logits = model.apply(
                variables, padded, train=False, rngs={"dropout": jax.random.fold_in(block, index)}
            )
        found.append(np.asarray(jax.nn.softmax(logits), np.float64)[: len(images)])
    return np.stack(found)


@pytest.mark.parametrize(
    "model",
    [CNN(4), ResNet(4, DropoutSpec("path")), ResNet(4, DropoutSpec("connect")), Own()],
    ids=["cnn", "resnet-path", "resnet-connect", "own"],
)
@pytest.mark.parametrize("samples", [1, 6])
def test_samples_are_those_of_the_naive_loop(model, samples):
    variables = model.init(jax.random.key(1), X)
    found = sample_predictions(model.apply, variables, X, KEY, samples)
    each = naive(model, variables, samples)
    np.testing.assert_allclose(found.probabilities, each.mean(0), atol=1e-5)
    entropy = -np.sum(each * np.log(each), -1).mean(0)
    np.testing.assert_allclose(found.expected_entropy, entropy, atol=1e-5)
    if samples > 1:
        top = each.mean(0).argmax(1)
        tops = each[:, np.arange(7), top]
        np.testing.assert_allclose(found.deviation, tops.std(0, ddof=1), atol=1e-3)
        assert np.all(found.mutual_information >= 0)
    assert found.samples == samples


def test_what_does_not_depend_on_the_key_runs_once():
    """The head that is left of the CNN holds no convolution and takes the last map."""
    model = CNN(4)
    variables = model.init(jax.random.key(1), X)

    def network(key, variables, images):
        with dropout_on():
            return model.apply(variables, images, rngs={"dropout": key})

    values, sample, random = split_by_key(network, KEY, variables, X)
    assert random
    text = str(jax.make_jaxpr(sample)(values, KEY))
    assert "conv_general" not in text
    assert "dot_general" in text
    assert sorted(value.size for value in values)[-1] == 7 * 4 * 4 * 64
    np.testing.assert_allclose(sample(values, KEY), network(KEY, variables, X), rtol=1e-5)


def test_a_function_without_randomness_is_all_trunk():
    values, sample, random = split_by_key(lambda key, x: x * 2, KEY, jnp.arange(3.0))
    assert not random
    assert sample(values, KEY).tolist() == [0, 2, 4]


def test_rates_beside_the_network_say_how_much_is_dropped():
    model = CNN(4)
    variables = model.init(jax.random.key(1), X)
    off = {**variables, "rates": {"Dropout_0": {"rate": jnp.float32(0)}}}
    found = sample_predictions(model.apply, off, X, KEY, 5)
    np.testing.assert_allclose(found.probabilities, predict(model.apply, variables, X), atol=1e-5)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-3)
    assert np.all(found.mutual_information < 1e-5)


def test_an_images_prediction_does_not_depend_on_those_behind_it():
    model = CNN(4)
    variables = model.init(jax.random.key(1), X)
    many = jnp.concatenate([X] * 40)
    whole = sample_predictions(model.apply, variables, many, KEY, 3).probabilities
    part = sample_predictions(model.apply, variables, many[:130], KEY, 3).probabilities
    np.testing.assert_allclose(whole[:130], part, atol=1e-6)
    assert not np.allclose(whole[:7], whole[7:14])


def test_what_cannot_be_sampled_is_refused():
    model = CNN(4)
    variables = model.init(jax.random.key(1), X)
    with pytest.raises(RequestError, match="samples is 0"):
        sample_predictions(model.apply, variables, X, KEY, 0)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    plain = Plain()
    with pytest.raises(RequestError, match="drops nothing"):
        sample_predictions(plain.apply, plain.init(KEY, X), X, KEY, 3)


def test_an_ensemble_is_the_mean_of_its_members():
    members = []
    for seed in range(3):
        model = CNN(4)
        variables = model.init(jax.random.key(seed), X)
        members.append(sample_predictions(model.apply, variables, X, KEY, 4))
    found = averaged(members)
    expected = np.mean([member.probabilities for member in members], 0)
    np.testing.assert_allclose(found.probabilities, expected)
    assert found.samples == 12
    np.testing.assert_allclose(averaged(members[:1]).deviation, members[0].deviation)
