import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import printed_tutorial
import pytest

from thinned.core.config import Config, DropoutConfig, recipe
from thinned.core.rng import key_for
from thinned.core.types import Dataset
from thinned.data.batch import Batch
from thinned.data.facts import Facts
from thinned.data.sources.load import open_source
from thinned.dropout.sites import DropoutSpec
from thinned.engine.build import Built
from thinned.engine.optim import adam
from thinned.engine.plan import Plan
from thinned.engine.step import create_state, train_steps
from thinned.models.cnn import CNN

pytestmark = pytest.mark.optimised

MNIST = open_source(None).load()
SMALL = Dataset("small", MNIST.train.take(np.arange(700)), MNIST.test, MNIST.classes, plain=True)
SITES = {"Dropout_0": 0.5}
# All that can have this one network, whose parameters then are drawn by one program.
CONFIG = Config(dropout=DropoutConfig(bits="threefry"))
MODEL = Built.of(CONFIG, Facts.of(SMALL, CONFIG)).model


def losses_of(config: Config, dataset: Dataset, steps: int, at_once: int) -> np.ndarray:
    """Ours, in chunks: the training loss at each step."""
    plan = Plan(config, len(dataset.train), SITES)
    state = Built.of(config, Facts.of(dataset, config)).initial_state()
    data = Batch(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))
    losses, done = [], 0
    while done < steps:
        chunk, count = plan.chunk(done, min(at_once, steps - done))
        state, sums = train_steps(state, data, chunk, jnp.int32(count))
        losses += [float(loss) / config.batch_size for loss in sums.loss[:count]]
        done += count
    return np.asarray(losses), state


def reference(config: Config, dataset: Dataset, steps: int, keys, orders, params_key) -> np.ndarray:
    """Plain Flax and Optax, fed the keys and orders: the training loss at each step."""
    shape, size = dataset.train.images.shape[1:], config.batch_size
    state = printed_tutorial.create(params_key, config.learning_rate, shape)
    images = jnp.float32(dataset.train.images) / 255.0
    labels, losses = jnp.asarray(dataset.train.labels), []
    per_epoch = len(labels) // size
    for step in range(steps):
        rows = orders(step // per_epoch + 1)[: per_epoch * size].reshape(per_epoch, size)
        perm = rows[step % per_epoch]
        state, loss, _ = printed_tutorial.train_step(state, images[perm], labels[perm], keys(step))
        losses.append(float(loss))
    return np.asarray(losses), state


def test_the_first_steps_agree_with_plain_flax_fed_the_same_keys():
    ours, state = losses_of(CONFIG, SMALL, 20, at_once=7)
    theirs, other = reference(
        CONFIG,
        SMALL,
        20,
        keys=lambda step: key_for(0, "dropout", step),
        orders=lambda epoch: jax.random.permutation(key_for(0, "shuffle", epoch), 700),
        params_key=key_for(0, "params"),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0.02, atol=2e-3), state.params, other.params
    )


def test_the_printed_recipe_agrees_with_the_printed_program():
    """The tutorial's own key splitting, frozen mask and frozen order, literally."""
    root = jax.random.PRNGKey(seed=0)
    _, params_key, dropout_key = jax.random.split(key=root, num=3)
    _, input_rng = jax.random.split(key=root)
    config = recipe("tutorial-as-printed")
    ours, _ = losses_of(config, SMALL, 30, at_once=30)
    theirs, _ = reference(
        config,
        SMALL,
        30,
        keys=lambda step: dropout_key,
        orders=lambda epoch: jax.random.permutation(input_rng, 700),
        params_key=params_key,
    )
    # At learning rate 0.1 rounding grows quickly: ten steps, then only the same course.
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-3)
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=0.05)


def test_initialisation_is_flaxs_own():
    theirs = printed_tutorial.create(key_for(3, "params"), 0.001, (28, 28, 1))
    ours = create_state(MODEL, jnp.ones((1, 28, 28, 1)), key_for(3, "params"), adam())
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert sum(leaf.size for leaf in jax.tree.leaves(ours.params)) == 50_186


def test_any_chunking_gives_the_same_bits():
    whole, one = losses_of(CONFIG, SMALL, 50, at_once=50)
    cut, two = losses_of(CONFIG, SMALL, 50, at_once=3)
    assert np.array_equal(whole, cut)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    jax.tree.map(np.testing.assert_array_equal, one.opt_state, two.opt_state)


@pytest.mark.parametrize("bits", ["threefry", pytest.param("auto", marks=pytest.mark.long)])
def test_one_program_serves_any_number_of_steps_rate_schedule_and_learning_rate(bits):
    courses = (
        (DropoutConfig(rate=0.0), 0.1, 3),
        (DropoutConfig(rate=0.3, sites={"Dropout_0": 0.1}, depth="linear"), 0.01, 5),
        (DropoutConfig(rate=1.0), 0.001, 40),
        (DropoutConfig(schedule="linear", schedule_epochs=0.5), 0.001, 40),
        (DropoutConfig(schedule="cosine", schedule_epochs=0.5, schedule_to=0.3), 0.001, 40),
        (DropoutConfig(schedule="early", schedule_epochs=0.1), 0.001, 40),
        (DropoutConfig(schedule="late", schedule_epochs=0.1), 0.001, 40),
    )
    sizes = []
    for dropout, learning_rate, steps in courses:
        dropout = dataclasses.replace(dropout, bits=bits)
        config = dataclasses.replace(CONFIG, learning_rate=learning_rate, dropout=dropout)
        plan, state = (
            Plan(config, 700, SITES),
            Built.of(config, Facts.of(SMALL, config)).initial_state(),
        )
        chunk, count = plan.chunk(0, steps)
        data = Batch(jnp.asarray(SMALL.train.images), jnp.asarray(SMALL.train.labels))
        train_steps(state, data, chunk, jnp.int32(count))
        sizes.append(train_steps._cache_size())
    # One program for the first, or one of before, and none for the others.
    assert sizes[0] >= 1
    assert len(set(sizes)) == 1


def test_masks_are_fresh_at_each_step_and_keep_the_right_fraction():
    """Keep fractions of 40 steps within 4 sigma, and no two steps alike."""
    model, images = CNN(dropout=DropoutSpec(rate=0.3)), jnp.ones((4, 28, 28, 1))
    variables = model.init(jax.random.key(0), images)
    masks = [
        np.asarray(dropped(model, variables, images, key_for(0, "dropout", step)))
        for step in range(40)
    ]
    assert len({mask.tobytes() for mask in masks}) == 40
    kept = np.mean(masks)
    sigma = np.sqrt(0.3 * 0.7 / np.size(masks))
    assert abs(kept - 0.7) < 4 * sigma


def dropped(model, variables, images, key):
    """Which inputs of the dense layer survive: all of them are made nonzero by the bias."""
    params = jax.tree.map(jnp.copy, variables["params"])
    params["Conv_1"]["bias"] = params["Conv_1"]["bias"] + 100.0
    _, seen = model.apply(
        {"params": params},
        images,
        train=True,
        rngs={"dropout": key},
        capture_intermediates=lambda module, _: module.name == "Dropout_0",
    )
    return seen["intermediates"]["Dropout_0"]["__call__"][0] != 0
