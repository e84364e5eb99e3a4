import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.core.rng import a_few, key_for, permutation, stream_root

SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(0, 2**32 - 1)
STREAMS = ("params", "shuffle", "split", "dropout", "augment")


def words(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).reshape(-1).tolist())


@given(SEEDS, st.sampled_from(STREAMS), STEPS)
def test_the_same_address_gives_the_same_key(seed, stream, step):
    assert words(key_for(seed, stream, step)) == words(key_for(seed, stream, step))


@given(SEEDS, STEPS)
def test_streams_steps_and_seeds_have_keys_of_their_own(seed, step):
    keys = {words(key_for(seed, stream, step)) for stream in STREAMS}
    keys |= {words(key_for(seed, "dropout", (step + 1) % 2**32))}
    keys |= {words(key_for((seed + 1) % 2**32, "dropout", step))}
    assert len(keys) == len(STREAMS) + 2


@given(SEEDS, st.lists(STEPS, min_size=4, max_size=4))
def test_an_array_of_steps_gives_the_keys_of_each(seed, steps):
    together = key_for(seed, "dropout", np.asarray(steps, np.uint32))
    apart = [words(key_for(seed, "dropout", step)) for step in steps]
    assert [words(key) for key in together] == apart


def test_keys_do_not_depend_on_the_default_generator():
    before = words(key_for(3, "dropout", 5))
    with jax.default_prng_impl("rbg"):
        assert words(key_for(3, "dropout", 5)) == before


def test_the_tutorials_derivation_is_the_printed_one():
    root = jax.random.PRNGKey(0)
    _, params, dropout = jax.random.split(root, num=3)
    _, shuffle = jax.random.split(root)
    assert words(stream_root(0, "params", "tutorial")) == tuple(params.tolist())
    assert words(stream_root(0, "dropout", "tutorial")) == tuple(dropout.tolist())
    assert words(stream_root(0, "shuffle", "tutorial")) == tuple(shuffle.tolist())


@given(SEEDS, st.sampled_from([1, 2, 31, 300]))
def test_a_permutation_visits_everything_once(seed, size):
    order = permutation(key_for(seed, "shuffle"), size)
    assert sorted(order.tolist()) == list(range(size))


@given(st.integers(2**32, 2**63 - 1), st.sampled_from(["named", "tutorial"]))
def test_no_bit_of_a_large_seed_is_lost(seed, derivation):
    key = words(key_for(seed, "shuffle", 1, derivation))
    for other in (seed % 2**32, seed ^ 2**40, seed ^ 1):
        assert words(key_for(other, "shuffle", 1, derivation)) != key


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(RequestError, match="seed"):
        key_for(seed, "params")


def test_known_keys_stay_what_they_are():
    # A change here would change what every saved seed means.
    assert words(key_for(0, "params")) == words(
        jax.random.fold_in(jax.random.fold_in(jax.random.key(0), stable("params")), 0)
    )


def stable(name: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


@pytest.mark.parametrize("epoch", [0, 17, 59_999])
def test_each_image_lands_anywhere_with_equal_chance(epoch):
    # 400 orders of 10 places, of 40 seeds: each place is a binomial count, here within 5 sigma.
    epochs = epoch + np.arange(10, dtype=np.uint32)
    places = [
        int(np.flatnonzero(permutation(key, 10) == 3)[0])
        for seed in range(40)
        for key in key_for(seed, "shuffle", epochs)
    ]
    counts = np.bincount(places, minlength=10)
    sigma = np.sqrt(400 * 0.1 * 0.9)
    assert np.abs(counts - 40).max() < 5 * sigma


@pytest.mark.parametrize(("size", "count"), [(0, 5), (5, 5), (6, 5), (300, 20)])
@pytest.mark.parametrize("seed", [0, 2**40])
def test_a_few_are_drawn_from_all_without_repeats(size, count, seed):
    found = a_few(size, count, seed)
    assert len(found) == min(size, count)
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, a_few(size, count, seed))
    assert ((found >= 0) & (found < size)).all()


def test_a_few_of_sorted_images_see_every_class():
    labels = np.repeat(np.arange(10), 1000)
    counts = np.bincount(labels[a_few(len(labels), 500)], minlength=10)
    # 50 of each are expected; the binomial's deviation is below 6.9.
    assert (np.abs(counts - 50) < 5 * 6.9).all()
