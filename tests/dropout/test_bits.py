"""The bits: equal to JAX's own, right at every size and rate, and unrelated between keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.dropout.bits import (
    GENERATORS,
    _mix,
    _threefry2x32,
    keep_mask,
    linear_position,
    random_bits,
    realised_keep,
)
from thinned.dropout.functional import dropout

pytestmark = pytest.mark.optimised

SHAPES = [(), (0,), (1,), (7,), (4, 0, 3), (33, 5), (1024, 31), (2, 3, 1, 5, 7)]
RATES = [0.0, 1e-8, 0.1, 1 / 3, 0.5, 0.937, 1 - 2**-24, 1.0]
COUNT = 2**20
SIGMAS = 6.0


def words_of(seed: int, second: int, count: int = COUNT) -> np.ndarray:
    key = jnp.array([seed, second], jnp.uint32)
    return np.asarray(random_bits(key, (count,), "fast"), np.uint32)


mask_of_257 = jax.jit(lambda key, rate: keep_mask(key, (257,), rate))


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Correlation of two masks at rate 0.5, in standard deviations of that of fair coins."""
    agree = np.mean((one >> 31) == (two >> 31))
    return abs(agree - 0.5) * 2 * np.sqrt(len(one))


@pytest.mark.parametrize("shape", SHAPES)
def test_threefry_words_are_jax_words(shape):
    key = jax.random.key(3)
    assert (random_bits(key, shape) == jax.random.bits(key, shape)).all()
    assert (random_bits(jax.random.key_data(key), shape) == jax.random.bits(key, shape)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", RATES)
def test_threefry_masks_are_bernoulli(shape, rate):
    key = jax.random.key(11)
    expected = jax.random.bernoulli(key, 1.0 - rate, shape)
    assert (keep_mask(key, shape, rate) == expected).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1, width=32))
def test_traced_rates_are_bernoulli(seed, rate):
    key = jax.random.key(seed)
    ours = mask_of_257(key, jnp.float32(rate))
    theirs = jax.random.bernoulli(key, 1 - jnp.float32(rate), (257,))
    assert (ours == theirs).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_positions_beyond_32_bits_are_exact(data):
    sizes = data.draw(st.lists(st.integers(1, 2**20), min_size=1, max_size=3))
    shape = (2**31 - 1, *sizes)
    coordinates = [data.draw(st.integers(0, size - 1)) for size in shape]
    high, low = linear_position([jnp.uint32(c) for c in coordinates], shape)
    position = 0
    for coordinate, size in zip(coordinates, shape, strict=True):
        position = position * size + coordinate
    assert int(low) + (int(high) << 32) == position % 2**64


def test_threefry_at_high_counters_is_the_reference():
    words = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
    # Known answer of the Random123 distribution for threefry2x32 with 20 rounds.
    one, two = _threefry2x32(words, jnp.uint32(0x243F6A88), jnp.uint32(0x85A308D3))
    assert (int(one), int(two)) == (0xC4923A9C, 0x483DF7A0)


@pytest.mark.parametrize("bits", ["threefry", "fast"])
def test_the_high_counter_word_matters(bits):
    words, low = jnp.array([1, 2], jnp.uint32), jnp.arange(COUNT, dtype=jnp.uint32)
    draw = _mix if bits == "fast" else lambda *a: _threefry2x32(*a)[0]
    drawn = [np.asarray(draw(words, jnp.full_like(low, high), low)) for high in (0, 1, 2)]
    assert correlation(drawn[0], drawn[1]) < SIGMAS
    assert correlation(drawn[1], drawn[2]) < SIGMAS


@pytest.mark.parametrize("bits", ["threefry", "fast"])
def test_vmap_gives_each_key_its_own_mask(bits):
    keys = jax.random.split(jax.random.key(0), 5)
    together = jax.vmap(lambda key: keep_mask(key, (9, 4), 0.4, bits))(keys)
    apart = jnp.stack([keep_mask(key, (9, 4), 0.4, bits) for key in keys])
    assert (together == apart).all()


@pytest.mark.parametrize("bits", ["threefry", "fast"])
@pytest.mark.parametrize("wrap", [float, jnp.float32])
def test_the_ends_are_exact(bits, wrap):
    key = jax.random.key(1)
    assert keep_mask(key, (COUNT,), wrap(0), bits).all()
    assert not keep_mask(key, (COUNT,), wrap(1), bits).any()
    assert realised_keep(wrap(0), bits) == 1
    assert realised_keep(wrap(1), bits) == 0


@pytest.mark.parametrize("bits", ["threefry", "fast"])
@pytest.mark.parametrize("rate", [0.001, 0.1, 1 / 3, 0.5, 0.8, 0.999])
def test_realised_rates(bits, rate):
    kept = int(keep_mask(jax.random.key(5), (COUNT,), rate, bits).sum())
    keep = float(realised_keep(rate, bits))
    assert abs(kept - COUNT * keep) < SIGMAS * np.sqrt(COUNT * keep * (1 - keep))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1, width=32))
def test_realised_keep_counts_the_uniforms_below(rate):
    # The uniform is k * 2**-23 for k in range(2**23): count those below keep, in exact integers.
    keep = float(np.float32(1.0 - rate))
    below = int(np.ceil(keep * 2**23))
    assert float(realised_keep(rate)) * 2**23 == below
    assert float(realised_keep(rate, "fast")) == float(np.float32(1) - np.float32(rate))


def test_fast_bits_are_unbiased():
    words = words_of(0, 0)
    ones = ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).sum(0)
    assert np.abs(ones - COUNT / 2).max() < SIGMAS * np.sqrt(COUNT) / 2


def test_every_key_bit_changes_half_of_the_output():
    words = words_of(0, 0, 4096)
    for bit in range(64):
        flipped = [0, 0]
        flipped[bit // 32] = 1 << (bit % 32)
        changed = np.bitwise_count(words ^ words_of(*flipped, 4096)).sum()
        total = 4096 * 32
        assert abs(changed - total / 2) < SIGMAS * np.sqrt(total) / 2


def shifted_or_permuted(draw) -> float:
    """The worst correlation between neighbouring keys, over shifts and XORs of the position."""
    one, two, index = draw(7), draw(8), np.arange(COUNT)
    shifts = [correlation(np.roll(one, -shift)[:-64], two[:-64]) for shift in range(33)]
    permutations = [correlation(one[index ^ mask], two) for mask in (1, 2, 3, 7, 8, 15, 255)]
    return max(shifts + permutations)


def test_neighbouring_keys_are_not_shifts_of_each_other():
    assert shifted_or_permuted(lambda key: words_of(0, key)) < SIGMAS


@pytest.mark.parametrize("combine", [np.add, np.bitwise_xor])
def test_the_shift_test_catches_a_seed_that_only_moves_the_counter(combine):
    def weak(key):
        x = combine(np.arange(COUNT, dtype=np.uint32), np.uint32(key))
        for turn, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
            x = (x ^ (x >> np.uint32(turn))) * np.uint32(factor)
        return x ^ (x >> np.uint32(14))

    assert shifted_or_permuted(weak) > 100 * SIGMAS


def test_steps_are_unrelated():
    root = jax.random.key(0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(2**14))
    drawn = jax.vmap(lambda key: random_bits(key, (8,), "fast"))(keys)
    drawn = np.asarray(drawn, np.uint32)
    for element in range(8):
        assert correlation(drawn[1:, element], drawn[:-1, element]) < SIGMAS


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind_keep_their_bits(impl):
    key = jax.random.key(0, impl=impl)
    assert (random_bits(key, (5, 3)) == jax.random.bits(key, (5, 3))).all()
    assert random_bits(key, (5, 3), "fast").shape == (5, 3)


@pytest.mark.parametrize(
    "key", [jnp.zeros(2), jnp.zeros(3, jnp.uint32), jax.random.split(jax.random.key(0), 2)]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(RequestError, match="key is expected"):
        random_bits(key, (3,))


def test_an_unknown_generator_is_refused():
    with pytest.raises(RequestError, match="choose from threefry, fast"):
        random_bits(jax.random.key(0), (3,), "mersenne")


@pytest.mark.parametrize("bits", GENERATORS)
def test_a_compiled_step_keeps_no_masks_for_its_backward_pass(bits):
    shape, key = (128, 256), jax.random.key(0)

    def memory(apply):
        def loss(x, weights):
            for layer in range(4):
                x = apply(jnp.tanh(x @ weights), jax.random.fold_in(key, layer))
            return x.sum()

        arguments = jnp.ones(shape), jnp.ones((shape[1], shape[1]))
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    own = memory(lambda x, key: dropout(x, 0.5, key, bits=bits))
    # A mask is drawn and used at once; four of them would stay.
    assert own - memory(lambda x, key: 2 * x) < 4 * math.prod(shape)
