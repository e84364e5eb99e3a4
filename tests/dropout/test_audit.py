"""The audit finds what really goes wrong in public programs, and nothing where all is well."""

import jax
import jax.numpy as jnp
import numpy as np
import printed_tutorial
import pytest
from flax import linen as nn
from flax import nnx

from thinned.core.errors import RequestError
from thinned.dropout import linen as L
from thinned.dropout.audit.front import audit
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.dropout.functional import dropout
from thinned.dropout.sites import DropoutSpec, dropout_sites
from thinned.models.cnn import CNN

X = jnp.ones((8, 8, 8, 1))
KEY = jax.random.key(0)
ONE, TWO = jax.random.split(KEY)


def fresh(step):
    return {"dropout": jax.random.fold_in(TWO, step)}


class Net(nn.Module):
    """Two dropouts, of a given make, around dense layers."""

    first: type = nn.Dropout
    second: type = nn.Dropout
    rates: tuple = (0.3, 0.5)
    always: bool | None = None

    @nn.compact
    def __call__(self, x, train=False):
        off = not train if self.always is None else not self.always
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        x = self.first(self.rates[0], deterministic=off, name="one")(x)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x))
        return nn.Dense(3)(self.second(self.rates[1], deterministic=off, name="two")(x))


def failed(found):
    return {(check.question, check.site) for check in found.failures()}


KINDS = ("element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect")


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        # No kind sees which generator it draws from: each has one of them, and both at night.
        pytest.param(kind, bits, marks=() if i % 2 == j else pytest.mark.long)
        for i, kind in enumerate(KINDS)
        for j, bits in enumerate(("threefry", "fast"))
    ],
)
def test_every_kind_of_ours_passes_and_its_rate_is_measured(kind, bits):
    model = CNN(3, DropoutSpec(kind, rate=0.3, bits=bits, block_size=1, examples=10))
    found = audit(model, X, rngs=fresh, init_rngs=ONE)
    assert found.passed, str(found)
    (site,) = found.sites
    assert site.kind == kind
    assert site.rate == pytest.approx(0.3)
    assert abs(site.effective - 0.3) < 5 * site.error
    assert site.error < 0.03


@pytest.mark.parametrize("layer", [nn.Dropout, L.Dropout, L.GaussianDropout, L.AlphaDropout])
def test_a_network_of_flax_with_batch_norm_passes(layer):
    found = audit(Net(layer, layer), X, rngs=fresh, init_rngs={"params": ONE, "dropout": TWO})
    assert found.passed, str(found)
    assert [site.name for site in found.sites] == ["one", "two"]
    assert [site.rate for site in found.sites] == pytest.approx([0.3, 0.5])
    untouched = [check for check in found.checks if "leaves statistics alone" in check.question]
    assert untouched[0].passed


def test_the_tutorials_frozen_key_is_caught():
    """As printed: one key, split once, given to every step; the mode is an attribute."""
    _, params_key, dropout_key = jax.random.split(jax.random.key(0), 3)
    found = audit(
        printed_tutorial.CNN(training=True),
        jnp.ones((8, 28, 28, 1)),
        evaluation=printed_tutorial.CNN(training=False),
        rngs=lambda step: {"dropout": dropout_key},
        init_rngs=params_key,
        draws=8,
    )
    assert failed(found) == {("masks change from step to step", "Dropout_0")}
    assert "FAIL" in str(found).splitlines()[1]


def test_a_key_shared_with_initialisation_is_caught():
    found = audit(Net(), X, rngs=lambda _: {"dropout": ONE}, init_rngs=ONE, draws=8)
    assert ("no key is shared with initialisation or between streams", "") in failed(found)
    later = audit(
        Net(),
        X,
        rngs=lambda step: {"dropout": ONE if step == 5 else jax.random.fold_in(TWO, step)},
        init_rngs={"params": ONE},
        draws=8,
    )
    assert "at step 5" in later.failures()[0].detail


def test_one_key_in_two_streams_is_caught():
    def rngs(step):
        key = jax.random.fold_in(TWO, step)
        return {"dropout": key, "noise": key}

    found = audit(Net(), X, rngs=rngs, draws=8)
    assert failed(found) == {("no key is shared with initialisation or between streams", "")}
    assert "the key of dropout at step 0 is that of noise" in str(found)


def test_a_rate_too_small_to_be_seen_is_not_judged():
    found = audit(Rare(), X[:, :2, :2], rngs=fresh, draws=8)
    assert found.passed, str(found)
    assert "too small to be seen" in str(found)


class Rare(nn.Module):
    """A rate that eight small batches do not show."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(1e-4, deterministic=not train)(x)


def test_a_stream_that_was_not_given_is_caught():
    found = audit(Net(), X, rngs=lambda step: {"params": jax.random.fold_in(ONE, step)}, draws=8)
    question = "each site draws from a stream that was given"
    assert failed(found) == {(question, "one"), (question, "two")}


class WrongDropout(nn.Module):
    """A layer of somebody else's; those below each make one mistake."""

    rate: float
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        return x if self.deterministic else self.drop(x)


class ForgetfulDropout(WrongDropout):
    """A layer whose author forgot to use the mask."""

    def drop(self, x):
        jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return x


class HalfDropout(WrongDropout):
    """A layer that drops half as often as it is asked to, and forgets to scale."""

    def drop(self, x):
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate / 2, x.shape)
        return jnp.where(keep, x, 0)


class SameDropout(WrongDropout):
    """A layer with a key of its own making: the same one in every layer and at every step."""

    def drop(self, x):
        keep = jax.random.bernoulli(jax.random.key(0), 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


class BatchDropout(WrongDropout):
    """A layer that gives all examples one mask."""

    def drop(self, x):
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape[1:])
        return jnp.where(keep, x / (1 - self.rate), 0)


def test_a_rate_without_effect_is_caught():
    found = audit(Net(second=ForgetfulDropout), X, rngs=fresh)
    assert failed(found) == {("dropout is on in training", "two")}
    assert "a rate of 0.5 has no effect" in str(found)


def test_a_network_that_drops_nothing_is_caught():
    """An option that is wired to nothing: there is no site at all."""

    class Plain(nn.Module):
        drop_rate: float = 0.5

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    found = audit(Plain(), X)
    assert failed(found) == {("the network drops something in training", "")}


def test_a_rate_that_is_not_the_configured_one_is_caught():
    found = audit(Net(second=HalfDropout), X, rngs=fresh)
    assert failed(found) == {
        ("the effective rate is the configured one", "two"),
        ("the mean is kept", "two"),
    }


def test_dropout_left_off_in_training_is_caught():
    found = audit(Net(always=False), X, rngs=fresh)
    question = "dropout is on in training"
    assert failed(found) == {
        (question, "one"),
        (question, "two"),
    }


def test_dropout_left_on_in_evaluation_is_caught():
    found = audit(Net(always=True), X, rngs=fresh, variables=Net().init(ONE, X))
    question = "dropout is off in evaluation"
    assert failed(found) == {
        (question, "one"),
        (question, "two"),
        ("evaluation gives the same with every key", ""),
    }


def test_the_same_stream_in_every_layer_is_caught():
    found = audit(Net(SameDropout, SameDropout, rates=(0.5, 0.4)), X, rngs=fresh)
    assert ("sites differ from one another", "two") in failed(found)
    assert ("masks change from step to step", "one") in failed(found)

    class Given(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, key=None):
            x = x.reshape(len(x), -1)
            for _ in range(2):
                x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(64)(x), rng=key)
            return x

    shared = audit(Given(), X, train={"train": True, "key": ONE}, evaluate={}, draws=8)
    assert ("sites differ from one another", "Dropout_1") in failed(shared)


def test_one_mask_for_all_examples_is_caught_unless_it_was_asked_for():
    found = audit(Net(second=BatchDropout), X, rngs=fresh)
    assert failed(found) == {("each example has a mask of its own", "two")}

    class Asked(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.5, broadcast_dims=(0,), deterministic=not train)(x)

    assert audit(Asked(), X, rngs=fresh).passed


def test_statistics_that_sampling_would_change_are_caught():
    class Careless(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1))
            return nn.Dropout(0.5, deterministic=not train)(x)

    found = audit(Careless(), jax.random.normal(KEY, X.shape), rngs=fresh)
    assert failed(found) == {("sampling at prediction time leaves statistics alone", "")}


def test_sites_inside_transforms_are_measured_like_others():
    class Wrapped(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.remat(nn.Dropout)(0.5, deterministic=not train, name="hidden")(x)
            return nn.Dropout(0.5, deterministic=not train, name="seen")(x)

    found = audit(Wrapped(), X, rngs=fresh, draws=8)
    assert found.passed
    assert not found.unseen
    assert {site.name: site.rate for site in found.sites} == {"hidden": 0.5, "seen": 0.5}
    assert all(abs(site.effective - 0.5) < 0.1 for site in found.sites)
    assert str(found).splitlines()[-1].startswith("ok: ")


class Attention(nn.Module):
    """Dropout inside a layer that is not known."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), 8, -1)
        layer = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)
        return layer(nn.Dense(4)(x))


class Inline(nn.Module):
    """Dropout without a layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        x = dropout(x, 0.5, self.make_rng("dropout")) if train else x
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(x)


class Remat(nn.Module):
    """Dropout inside a transform."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        return nn.remat(nn.Dropout)(self.rate, deterministic=not train, name="hidden")(x)


@pytest.mark.parametrize("model", [Attention(), Inline(), Remat()], ids=lambda m: type(m).__name__)
def test_frozen_keys_are_caught_where_no_layer_is_called(model):
    frozen = audit(model, X, rngs=lambda step: {"dropout": TWO}, init_rngs=ONE, draws=8)
    assert [check.question for check in frozen.failures()] == ["masks change from step to step"]
    healthy = audit(model, X, rngs=fresh, init_rngs=ONE, draws=8)
    assert healthy.passed, str(healthy)
    assert not healthy.unseen


def test_a_key_that_is_drawn_for_nothing_drops_nothing():
    class Vain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            if train:
                self.make_rng("dropout")
            return nn.Dense(3)(x.reshape(len(x), -1))

    found = audit(Vain(), X, rngs=fresh, draws=8)
    assert failed(found) == {("the network drops something in training", "")}
    assert audit(Remat(rate=0.0), X, rngs=fresh, draws=8).passed


@pytest.mark.parametrize("off", [False, True])
def test_a_network_of_nnx_drops_or_does_not(off):
    class Modern(nnx.Module):
        def __init__(self, *, rngs):
            self.one = nnx.Linear(64, 8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=off, rngs=rngs)

        def __call__(self, x, train=False):
            x = self.one(x.reshape(len(x), -1))
            return self.drop(x) if train else x

    found = audit(
        nnx.bridge.to_linen(Modern),
        X,
        rngs=fresh,
        init_rngs={"params": ONE, "dropout": TWO},
        train={"train": True},
        evaluate={},
        draws=8,
    )
    expected = {("the network drops something in training", "")} if off else set()
    assert failed(found) == expected
    assert not found.unseen


def test_a_key_given_to_a_layer_that_is_off_and_inputs_by_name_are_no_failures():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            key = self.make_rng("dropout") if train else ONE
            x = nn.Dropout(0.5)(deterministic=not train, inputs=x, rng=key)
            return L.Dropout(0.5, name="ours")(inputs=x, deterministic=not train)

    x = 3 + jax.random.normal(KEY, X.shape)
    found = audit(Named(), x, rngs=fresh, draws=16)
    assert found.passed, str(found)
    assert [site.effective is None for site in found.sites if "rop" in site.name] == [False]
    assert list(dropout_sites(Named(), x, train=True)) == ["ours"]


def test_a_rate_of_0_and_of_1_are_no_failures():
    assert audit(Net(rates=(0.0, 1.0)), X, rngs=fresh).passed


def test_dropout_on_drops_in_evaluation_and_leaves_the_rest():
    x = jax.random.normal(KEY, (8, 8, 8, 1))
    variables = Net().init(ONE, x)
    plain = Net().apply(variables, x)
    with dropout_on():
        one, two = (
            Net().apply(variables, x, rngs={"dropout": jax.random.key(step)}) for step in (0, 1)
        )
    assert not np.array_equal(one, two)
    assert np.array_equal(Net().apply(variables, x), plain)
    with dropout_on():
        off = Net(rates=(0.0, 0.0)).apply(variables, x)
    np.testing.assert_allclose(off, plain, rtol=1e-6)


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(RequestError, match="at least 8"):
        audit(Net(), X, draws=2)
    with pytest.raises(RequestError, match="two examples"):
        audit(Net(), X[:1])
    with pytest.raises(RequestError, match="two examples"):
        audit(Net())
    with pytest.raises(RequestError, match="no argument train"):
        audit(nn.Dense(3), X)
    with pytest.raises(RequestError, match="whole number of at least 8"):
        audit(Net(), X, draws="x")
    with pytest.raises(RequestError, match="function of the step"):
        audit(Net(), X, rngs={"dropout": TWO})
    with pytest.raises(RequestError, match="Haiku, not function; .*audit_function"):
        audit(fresh, X)
