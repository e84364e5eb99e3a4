"""What a step and an evaluation mean, whatever way their programs are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import printed_tutorial
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config
from thinned.core.rng import key_for
from thinned.core.types import Split
from thinned.data.batch import Batch
from thinned.data.sources.load import open_source
from thinned.dropout.sites import rates_collection
from thinned.engine.evaluation import evaluate
from thinned.engine.optim import adam
from thinned.engine.plan import CHUNK_STEPS, Plan
from thinned.engine.step import create_state, train_step
from thinned.models.mlp import MLP

MNIST = open_source(None).load()
SITES = {"Dropout_0": 0.5}


@given(st.sampled_from([(700, 32), (64, 64), (65, 2)]), st.integers(0, 200), st.integers(1, 300))
def test_a_chunk_is_a_window_on_one_endless_course(sizes, step, count):
    train_size, batch = sizes
    plan = Plan(Config(batch_size=batch), train_size, SITES)
    chunk, got = plan.chunk(step, count)
    assert 1 <= got <= min(count, CHUNK_STEPS)
    assert step // plan.steps_per_epoch == (step + got - 1) // plan.steps_per_epoch
    last, _ = plan.chunk(step + got - 1, 1)
    assert np.array_equal(chunk.order[got - 1], last.order[0])
    assert jax.random.key_data(chunk.keys[got - 1]).tolist() == (
        jax.random.key_data(last.keys[0]).tolist()
    )


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_visits_every_image_at_most_once_in_an_order_of_its_own(epoch):
    plan = Plan(Config(batch_size=7), 700, SITES)
    seen = np.concatenate([plan.chunk(100 * (epoch - 1) + s, 1)[0].order[0] for s in range(100)])
    assert len(np.unique(seen)) == 700
    first = plan.chunk(0, 1)[0].order[0].tolist()
    assert (seen[:7].tolist() == first) == (epoch == 1)


def test_the_pure_step_trains_a_readers_own_module():
    from flax import linen as nn

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
            return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))

    batch = Batch(jnp.asarray(MNIST.train.images[:64]), jnp.asarray(MNIST.train.labels[:64]))
    state = create_state(Own(), jnp.ones((1, 28, 28, 1)), key_for(0, "params"), adam())
    step = jax.jit(train_step)
    losses = []
    for index in range(20):
        state, sums = step(state, batch, {}, key_for(0, "dropout", index))
        losses.append(float(sums.loss) / 64)
    assert losses[-1] < 0.7 * losses[0]
    means = state.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert float(jnp.abs(means).max()) > 0


def test_a_rate_beside_the_batch_overrides_the_modules_own():
    state = create_state(MLP(hidden=(16,)), jnp.ones((1, 28, 28, 1)), key_for(0, "params"), adam())
    batch = Batch(jnp.asarray(MNIST.train.images[:64]), jnp.asarray(MNIST.train.labels[:64]))
    key, none = key_for(0, "dropout", 0), rates_collection({"input": 0.0, "hidden_1": 0.0})
    _, off = jax.jit(train_step)(state, batch, none, key)
    _, own = jax.jit(train_step)(state, batch, {}, key)
    plain = evaluate(state.apply_fn, state.variables, batch)
    assert float(off.loss) == pytest.approx(plain.totals.loss, rel=1e-5)
    assert float(own.loss) != float(off.loss)


def test_keys_that_are_first_asked_for_in_a_trace_are_keys_afterwards():
    one, two = (Plan(Config(), 700, SITES) for _ in range(2))
    jax.make_jaxpr(lambda x: x + jax.random.uniform(one.dropout_key(3)))(1.0)
    words = [jax.random.key_data(plan.dropout_key(3)).tolist() for plan in (one, two)]
    assert words[0] == words[1]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 76, 77, 1000])
def test_evaluation_counts_every_example_once_whatever_the_batch(batch_size):
    state = create_state(MLP(hidden=(16,)), jnp.ones((1, 28, 28, 1)), key_for(0, "params"), adam())
    split = Split(MNIST.test.images[:77], MNIST.test.labels[:77])
    data = Batch(jnp.asarray(split.images), jnp.asarray(split.labels))
    logits = state.apply_fn(state.variables, jnp.float32(split.images) / 255.0)
    found = evaluate(state.apply_fn, state.variables, data, batch_size)
    predicted = np.argmax(logits, -1)
    assert found.totals.count == found.confusion.sum() == 77
    assert found.totals.correct == (predicted == split.labels).sum()
    for label in range(10):
        mine = split.labels == label
        expected = (predicted[mine] == label).mean() if mine.any() else np.nan
        np.testing.assert_allclose(found.class_accuracy[label], expected)
    expected = float(printed_tutorial.cross_entropy(logits, data.labels)) * 77
    assert found.totals.loss == pytest.approx(expected, rel=1e-5)


def test_of_many_classes_nothing_is_counted_for_each_pair_of_them():
    # So many that counts for each pair would fill 40 GB.
    classes = 100_000
    labels = np.arange(30, dtype=np.int32) * 3000
    data = Batch(jnp.zeros((30, 1, 1, 1)), jnp.asarray(labels))

    def the_same(variables, images, *, train):
        # Of the images, so that XLA does not compute it while it compiles.
        return jnp.where(jnp.arange(classes) == 87_000, 1.0, images[:, 0, 0])

    found = evaluate(the_same, {}, data, 8)
    assert found.classes == classes
    assert np.flatnonzero(found.class_accuracy == 1).tolist() == [87_000]
    assert np.isnan(found.class_accuracy).sum() == classes - 30
