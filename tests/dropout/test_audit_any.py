"""The audit of any program: every planted fault is found, and nothing where all is well."""

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from conftest import normal_values
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from thinned.core.errors import RequestError
from thinned.dropout.audit.front import audit
from thinned.dropout.audit.functions import audit_function
from thinned.dropout.audit.program import Watch, run, traced
from thinned.dropout.linen import Dropout
from thinned.testing import assert_dropout

KEY, X = jax.random.key(0), normal_values(1, 6, 8)

# Each fault in one or two networks, of which the slower waits for the night;
# scripts/planted_faults.py has them all.
PLANTED = [
    pytest.param("ViT (Linen)", "result discarded", marks=pytest.mark.long),
    ("ViT (Linen)", "stream not given"),
    pytest.param("ViT (Linen)", "other mask backward", marks=pytest.mark.long),
    pytest.param("ViT (Linen)", "off in training", marks=pytest.mark.long),
    pytest.param("BERT (Linen, scan, remat)", "frozen key", marks=pytest.mark.long),
    ("BERT (Linen, scan, remat)", "key shared by layers of a scan"),
    pytest.param("BERT (Linen, scan, remat)", "constant key", marks=pytest.mark.long),
    ("WRN (Linen)", "statistics disturbed"),
    ("WRN (Linen)", "key shared by sites"),
    ("WRN (Linen)", "key shared by streams"),
    ("transformer (NNX)", "frozen key"),
    ("transformer (NNX)", "key of init"),
    pytest.param("transformer (NNX)", "on in evaluation", marks=pytest.mark.long),
    ("transformer (NNX)", "off in training"),
    pytest.param("transformer (NNX)", "statistics disturbed", marks=pytest.mark.long),
    ("MLP (Equinox)", "one mask for the batch"),
    ("MLP (Equinox)", "key shared by sites"),
    ("MLP (Haiku)", "wrong scale"),
    ("plain function", "key shared by layers of a scan"),
    ("plain function", "constant key"),
    ("plain function", "result discarded"),
    ("plain function", "wrong scale"),
    ("plain function", "one mask for the batch"),
    ("plain function", "other mask backward"),
    ("plain function", "on in evaluation"),
]


@cache
def examined(network, fault):
    if not planted.is_installed(network):
        pytest.skip(f"{planted.NEEDS[network]} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Other libraries' own.
        return planted.NETWORKS[network](fault)


@pytest.mark.parametrize("network", planted.NETWORKS)
def test_sound_networks_raise_no_alarm(network):
    found = examined(network, None)
    assert found.passed, str(found)
    assert not found.unseen
    assert len(found.sites) >= 2


@pytest.mark.parametrize(("network", "fault"), PLANTED)
def test_planted_faults_are_found_and_nothing_else(network, fault):
    failed = {check.question for check in examined(network, fault).failures()}
    assert planted.FAULTS[fault] in failed
    # What a fault brings along: a constant key is frozen, and no own mask is one for all.
    allowed = {
        "constant key": {"masks change from step to step", "layers have masks of their own"},
        "on in evaluation": {"evaluation gives the same with every key"},
    }
    assert failed - {planted.FAULTS[fault]} <= allowed.get(fault, set())


def test_sites_of_a_scan_that_is_rematerialised_count_once():
    found = examined("BERT (Linen, scan, remat)", None)
    assert len(found.sites) == 4
    assert [site.rate for site in found.sites] == pytest.approx([0.1, 0.3, 0.4, 0.4])


class RaindropScale(nn.Module):
    rate: float = 0.3

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, (x.shape[-1],))


def test_names_that_sound_like_dropout_raise_no_alarm():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.5, deterministic=not train)(RaindropScale()(x))

    found = audit(Net(), X, draws=8)
    assert found.passed, str(found)
    assert [site.name for site in found.sites] == ["Dropout_0"]


@pytest.mark.parametrize("layer", [nn.Dropout, Dropout])
def test_a_negative_axis_that_is_shared_is_asked_for(layer):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return layer(0.5, broadcast_dims=(-2,), deterministic=not train)(x)

    assert audit(Net(), X, draws=8).passed


def test_a_constant_key_in_attention_is_found():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            layer = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)
            x = layer(x[:, None], dropout_rng=jax.random.key(3))[:, 0]
            return nn.Dropout(0.5, deterministic=not train)(x)

    (first, *_) = audit(Net(), X, draws=8).failures()
    assert first.site == "MultiHeadDotProductAttention_0"


def fresh(step):
    return jax.random.fold_in(KEY, step)


def test_noise_that_is_added_and_random_choices_raise_no_alarm():
    def network(key, x):
        one, two, three = jax.random.split(key, 3)
        x = x + jnp.exp(x) * jax.random.normal(one, x.shape)
        x = jnp.where(jax.random.bernoulli(two, 0.5, (len(x), 1)), x, jnp.flip(x, 1))
        return x[jax.random.permutation(three, len(x))]

    found = audit_function(network, fresh, X, evaluation=lambda key, x: x, draws=8)
    assert found.passed, str(found)
    assert not found.unseen
    assert [site.effective for site in found.sites] == [None] * 3 or len(found.sites) >= 3


def test_a_latent_code_and_masked_tokens_raise_no_alarm():
    """Noise of an autoencoder (Kingma & Welling 2014) and the input of BERT keep no mean."""
    table = normal_values(0, 11, 8)

    def network(key, tokens):
        one, two = jax.random.split(key)
        seen = jnp.where(jax.random.bernoulli(one, 0.3, tokens.shape), 10, tokens)
        x = table[seen].mean(1)
        mean, log_deviation = x, 0.1 * jnp.flip(x, 1)
        return mean + jnp.exp(log_deviation) * jax.random.normal(two, x.shape)

    tokens = jax.random.randint(KEY, (6, 9), 0, 10)
    evaluation = lambda key, tokens: table[tokens].mean(1)  # noqa: E731
    found = audit_function(network, fresh, tokens, evaluation=evaluation, draws=8)
    assert found.passed, str(found)
    assert not found.unseen


def test_what_cannot_be_looked_at_is_not_proved():
    def network(key, x):
        data = jax.random.key_data(key)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x, _: np.asarray(x), shape, x, data)

    found = audit_function(network, fresh, X, draws=8)
    assert len(found.unseen) == 1
    assert "pure_callback" in str(found)
    with pytest.raises(AssertionError, match="not proved"):
        assert_dropout(network, fresh, X, draws=8)
    assert assert_dropout(network, fresh, X, draws=8, ignore=found.unseen)


def test_a_branch_that_is_not_taken_is_not_proved_and_one_that_is_is_measured():
    def network(key, x, far):
        return jax.lax.cond(far, lambda: planted.bernoulli_dropout(x, key, 0.3), lambda: x)

    far = audit_function(lambda k, x: network(k, x, True), fresh, X, draws=16)
    assert far.passed
    assert abs(far.sites[0].effective - 0.3) < 5 * far.sites[0].error
    near = audit_function(
        lambda k, far, x: network(k, x, far > 0), fresh, jnp.zeros(()), X, draws=8
    )
    assert len(near.unseen) == 1


def test_assert_dropout_fails_with_the_report():
    def network(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)

    with pytest.raises(AssertionError, match=r"the mean gate is 0\.[45]\d+, not 1"):
        assert_dropout(network, fresh, X)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(RequestError, match="batch is 3"):
        audit_function(planted.bernoulli_dropout, fresh, X, batch=3)
    with pytest.raises(RequestError, match="two examples"):
        audit_function(planted.bernoulli_dropout, fresh, X[:1])
    with pytest.raises(RequestError, match="cannot be traced"):
        audit_function(lambda key, x: x if x.sum() > 0 else -x, fresh, X)
    with pytest.raises(RequestError, match="no option call"):
        audit(RaindropScale(), X, call=print)


def looped(key, x):
    """Every kind of block, calls in it, and what has more than one result."""

    def body(carry, key):
        carry = jax.lax.cond(carry.sum() > 0, jnp.sin, lambda c: c * 2, carry)
        return jax.nn.relu(carry) + jax.random.normal(key, carry.shape), carry.sum()

    x, sums = jax.lax.scan(jax.checkpoint(body), x, jax.random.split(key, 3), reverse=True)
    x = jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, x)
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("b",))
    part = PartitionSpec("b")

    def shard(x):
        return x - jax.lax.pmean(x.mean(), "b")

    return jax.shard_map(shard, mesh=mesh, in_specs=part, out_specs=part)(x), sums


def test_a_program_computes_what_its_function_does():
    program = traced(looped, KEY, X)
    outputs, seen = jax.jit(lambda *args: run(program.block, args, Watch()))(KEY, X)
    assert not seen
    for one, two in zip(outputs, jax.tree.leaves(looped(KEY, X)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
