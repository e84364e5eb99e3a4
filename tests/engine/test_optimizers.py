"""Optimizers, their courses, and what they add to the loss, against Optax and plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from thinned.core.config import Config, OptimConfig
from thinned.core.errors import RequestError
from thinned.core.validation import validate
from thinned.data.batch import Batch
from thinned.dropout.linen import Dropout
from thinned.engine.losses import cross_entropy, disagreement, smoothed
from thinned.engine.optim import Rule, numbers_at, optimizer, with_numbers
from thinned.engine.step import create_state, train_step

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32),
    "bias": jnp.asarray([0.5, -0.5, 0.1], jnp.float32),
}


def course(tx, numbers, own: bool) -> list[np.ndarray]:
    """Weights after each of five steps on the same gradients."""
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for step in range(5):
        grads = jax.tree.map(lambda leaf, s=step: jnp.sin(leaf * (s + 1)) * 3, params)
        if own:
            state = with_numbers(state, numbers)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
    return seen


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    ("optim", "rate", "reference"),
    [
        (OptimConfig(), 0.01, optax.adam(0.01)),
        (OptimConfig(name="adamw"), 0.01, optax.adamw(0.01, weight_decay=0.01, mask=is_matrix)),
        (
            OptimConfig(name="adamw", weight_decay=0.3),
            0.02,
            optax.adamw(0.02, weight_decay=0.3, mask=is_matrix),
        ),
        (OptimConfig(name="sgd", momentum=0.0), 0.1, optax.sgd(0.1)),
        (OptimConfig(name="sgd"), 0.1, optax.sgd(0.1, momentum=0.9)),
        (
            OptimConfig(name="sgd", momentum=0.8, nesterov=True),
            0.1,
            optax.sgd(0.1, momentum=0.8, nesterov=True),
        ),
        (
            OptimConfig(name="sgd", clip=0.5),
            0.1,
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
        ),
        (OptimConfig(clip=0.5), 0.1, optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))),
    ],
)
def test_the_optimizers_are_optaxs(optim, rate, reference):
    config = Config(learning_rate=rate, optim=optim)
    numbers = {name: value[0] for name, value in numbers_at(config, 10)(jnp.arange(1)).items()}
    ours = course(optimizer(Rule.of(optim)), numbers, own=True)
    for mine, theirs in zip(ours, course(reference, {}, own=False), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


def test_equal_rules_are_one_object_and_max_norm_binds():
    optim = OptimConfig(name="sgd", max_norm=0.7)
    assert optimizer(Rule.of(optim)) is optimizer(Rule.of(OptimConfig(name="sgd", max_norm=3.0)))
    tx = optimizer(Rule.of(optim))
    state = with_numbers(tx.init(PARAMS), {"learning_rate": 0.1, "momentum": 0.9, "max_norm": 0.7})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    assert float(jnp.linalg.norm(moved["kernel"], axis=0).max()) <= 0.7 + 1e-6


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (OptimConfig(), lambda step: 0.4),
        (OptimConfig(schedule="linear", final=0.1), optax.linear_schedule(0.4, 0.04, 60)),
        (OptimConfig(schedule="cosine"), optax.cosine_decay_schedule(0.4, 60)),
        (
            OptimConfig(schedule="exponential", final=0.01),
            lambda step: 0.4 * 0.01 ** (step / 60),
        ),
        (OptimConfig(schedule="onecycle"), optax.cosine_onecycle_schedule(60, 0.4)),
        (
            OptimConfig(warmup_epochs=2, schedule="cosine"),
            lambda step: (
                0.4 * (step + 1) / 20
                if step < 20
                else optax.cosine_decay_schedule(0.4, 40)(step - 20)
            ),
        ),
    ],
)
def test_learning_rates_follow_their_course(optim, expected):
    config = Config(learning_rate=0.4, epochs=6, optim=optim)
    found = numbers_at(config, 10)(jnp.arange(60))["learning_rate"]
    np.testing.assert_allclose(found, [float(expected(step)) for step in range(60)], rtol=1e-4)


def test_momentum_grows_to_its_final_value():
    optim = OptimConfig(name="sgd", momentum=0.95, momentum_start=0.5, momentum_epochs=2)
    found = np.asarray(numbers_at(Config(epochs=4, optim=optim), 10)(jnp.arange(40))["momentum"])
    assert found[0] == 0.5
    np.testing.assert_allclose(found[10], 0.725, rtol=1e-6)
    np.testing.assert_allclose(found[20:], 0.95, rtol=1e-6)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(8)(images.reshape(images.shape[0], -1))
        return nn.Dense(3)(Dropout(0.5)(x, deterministic=not train))


def batch(size: int = 6) -> Batch:
    random = np.random.default_rng(1)
    images = jnp.asarray(random.uniform(size=(size, 2, 2, 1)), jnp.float32)
    return Batch(images, jnp.arange(size, dtype=jnp.int32) % 3)


def moved_by(numbers) -> dict:
    """Weights after a step of gradient descent with step size 1."""
    rule = Rule.of(OptimConfig(name="sgd", momentum=0.0))
    state = create_state(Tiny(), batch().images, jax.random.key(0), optimizer(rule))
    state = state.replace(average=state.params)
    given = {"learning_rate": 1.0, "momentum": 0.0, **numbers}
    given = {name: jnp.float32(value) for name, value in given.items()}
    new, _ = jax.jit(train_step)(state, batch(), {}, jax.random.key(7), given)
    return jax.tree.map(lambda one, two: one - two, state.params, new.params)


def gradient_of(loss) -> dict:
    variables = jax.jit(Tiny().init)(jax.random.key(0), batch().images)

    def total(params):
        def logits(images):
            rngs = {"dropout": jax.random.key(7)}
            return Tiny().apply({"params": params}, images, train=True, rngs=rngs)

        return loss(params, logits)

    return jax.jit(jax.grad(total))(variables["params"])


def kernels(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]


def plain(params, logits):
    return cross_entropy(logits(batch().images), batch().labels).mean()


def with_l1(params, logits):
    return plain(params, logits) + 0.1 * sum(jnp.abs(leaf).sum() for leaf in kernels(params))


def with_l2(params, logits):
    return plain(params, logits) + 0.05 * sum((leaf**2).sum() for leaf in kernels(params))


def with_smoothing(params, logits):
    targets = 0.8 * jax.nn.one_hot(batch().labels, 3) + 0.2 / 3
    return -(targets * jax.nn.log_softmax(logits(batch().images))).sum(-1).mean()


def with_r_drop(params, logits):
    both = logits(jnp.concatenate([batch().images] * 2))
    p, q = jax.nn.log_softmax(both[:6]), jax.nn.log_softmax(both[6:])
    there, back = (jnp.exp(p) * (p - q)).sum(-1), (jnp.exp(q) * (q - p)).sum(-1)
    losses = cross_entropy(both, jnp.tile(batch().labels, 2)).reshape(2, 6).sum(0)
    # Liang et al. (2021), eq. 4, halved.
    return 0.5 * (losses + 2.0 * 0.5 * (there + back)).mean()


@pytest.mark.parametrize(
    ("numbers", "loss"),
    [
        ({}, plain),
        ({"l1": 0.1}, with_l1),
        ({"l2": 0.1}, with_l2),
        ({"label_smoothing": 0.2}, with_smoothing),
        ({"r_drop": 2.0}, with_r_drop),
    ],
)
def test_what_is_added_to_the_loss_has_the_gradient_of_its_formula(numbers, loss):
    ours, theirs = moved_by(numbers), gradient_of(loss)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_weights_and_is_what_is_evaluated():
    state = create_state(Tiny(), batch().images, jax.random.key(0), optimizer())
    state = state.replace(average=state.params)
    expected = np.asarray(state.params["Dense_0"]["kernel"])
    for step in range(1, 4):
        numbers = {"learning_rate": jnp.float32(0.1), "ema": jnp.float32(0.15)}
        state, _ = train_step(state, batch(), {}, jax.random.key(step), numbers)
        decay = min(0.15, step / (step + 9))
        new = np.asarray(state.params["Dense_0"]["kernel"])
        expected = decay * expected + (1 - decay) * new
    np.testing.assert_allclose(state.average["Dense_0"]["kernel"], expected, rtol=1e-6)
    assert state.variables["params"] is state.average


def test_smoothing_and_disagreement_of_simple_cases():
    found = smoothed(jnp.asarray([1]), 4, jnp.float32(0.4))
    np.testing.assert_allclose(found[0], [0.1, 0.7, 0.1, 0.1], rtol=1e-6)
    logits = jnp.asarray([[2.0, -1.0], [0.0, 0.0]])
    np.testing.assert_allclose(disagreement(logits, logits), 0, atol=1e-7)
    assert float(disagreement(logits, -logits)[0]) > 0


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (OptimConfig(nesterov=True), "take sgd"),
        (OptimConfig(weight_decay=0.1), "goes with adamw or sgd"),
        (OptimConfig(name="sgd", momentum_start=0.5), "go together"),
        (OptimConfig(schedule="exponential"), "--optim.final above 0"),
        (OptimConfig(schedule="onecycle", warmup_epochs=1), "warm-up of its own"),
        (OptimConfig(max_norm=0.0), "--optim.max-norm is 0"),
        (OptimConfig(ema=1.0), "--optim.ema is 1"),
    ],
)
def test_options_that_contradict_one_another_are_refused(optim, message):
    with pytest.raises(RequestError, match=message):
        validate(Config(optim=optim))
