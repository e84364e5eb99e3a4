"""Laws that every kind of dropout obeys, and what each kind alone promises."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal_values, uniform_values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from thinned.core.errors import RequestError
from thinned.dropout import functional as F
from thinned.dropout.bits import normal, uniform
from thinned.dropout.linen import DropConnectDense
from thinned.dropout.masks import grown, seed_rate, seed_shape

KERNEL = normal_values(8, 6, 5)
KINDS = {
    "element": F.dropout,
    "shared": partial(F.dropout, broadcast_dims=(1, -1)),
    "channel": F.channel_dropout,
    "path": F.drop_path,
    "block": partial(F.drop_block, block_size=3),
    "gaussian": F.gaussian_dropout,
    "alpha": F.alpha_dropout,
    "concrete": F.concrete_dropout,
    "connect": lambda x, rate, key, bits="threefry": F.drop_connect(
        x, KERNEL.astype(x.dtype), rate, key, bits=bits
    ),
    "connect-batch": lambda x, rate, key, bits="threefry": F.drop_connect(
        x, KERNEL.astype(x.dtype), rate, key, per_example=False, bits=bits
    ),
}
BITS = ("threefry", "fast")
BINARY = ("element", "shared", "channel", "path", "block")
SHAPE = (4, 7, 9, 6)


def with_slopes(function, bits):
    """Outputs and slopes, by one program; the loss is linear, so that a slope shows the gates."""

    def loss(x, rate, key):
        y = function(x, rate, key, bits=bits)
        return y.sum(dtype=jnp.float32), y

    return jax.jit(jax.grad(loss, has_aux=True))


SLOPES = {(kind, bits): with_slopes(KINDS[kind], bits) for kind in KINDS for bits in BITS}
RUNS = {case: lambda *given, run=run: run(*given)[1] for case, run in SLOPES.items()}
SEEDS = st.integers(0, 2**32 - 1)
# All ways in f32; every way once more in one of the halves. JAX's own bits are drawn in the same
# places as ours: two ways.
WRAPS = {
    "plain": ((jnp.float32, "fast"), (jnp.float16, "fast")),
    "remat": ((jnp.float32, "fast"), (jnp.float16, "fast")),
    "scan": ((jnp.float32, "fast"), (jnp.bfloat16, "fast"), (jnp.float32, "threefry")),
    "vmap": ((jnp.float32, "fast"), (jnp.float16, "fast"), (jnp.bfloat16, "threefry")),
    "jit": ((jnp.float32, "fast"), (jnp.bfloat16, "fast")),
}
# Every kind in every way, with these in turn; all of them together at night. So is a program in a
# program, for remat, scan and vmap are in one as it is.
WRAPPED = [
    pytest.param(
        kind,
        wrap,
        *way,
        marks=() if (i + j) % len(ways) == k and wrap != "jit" else pytest.mark.long,
    )
    for i, kind in enumerate(KINDS)
    for j, (wrap, ways) in enumerate(WRAPS.items())
    for k, way in enumerate(ways)
]
every = pytest.mark.parametrize("kind", KINDS)
either = pytest.mark.parametrize("bits", BITS)
# Where a kind does not see which generator it draws from: with both of them only at night.
ONE_OF_BOTH = [
    pytest.param(kind, bits, marks=() if i % 2 == j else pytest.mark.long)
    for i, kind in enumerate(KINDS)
    for j, bits in enumerate(BITS)
]


@cache
def inputs(dtype=jnp.float32):
    """Numbers around 4, none of them zero."""
    return (3 + 2 * uniform_values(9, *SHAPE)).astype(dtype)


def untouched(kind, x):
    return x @ KERNEL.astype(x.dtype) if kind.startswith("connect") else x


def run_both_ends(run, kind, x, key):
    at_zero, same = run(x, jnp.float32(0), key), untouched(kind, x)
    np.testing.assert_allclose(at_zero, same, rtol=0, atol=1e-5 if "connect" in kind else 0)
    assert not np.any(run(x, jnp.float32(1), key))


@every
@either
@settings(max_examples=3)
@given(SEEDS)
def test_rate_0_is_the_identity_and_rate_1_is_zero_with_a_zero_gradient(kind, bits, seed):
    x, key = inputs(), jax.random.key(seed)
    run_both_ends(RUNS[kind, bits], kind, x, key)
    for plain, expected in ((0, untouched(kind, x)), (1, np.zeros(1))):
        plainly = KINDS[kind](x, plain, key, bits=bits)
        assert np.array_equal(plainly, np.broadcast_to(expected, plainly.shape))
    slopes = [SLOPES[kind, bits](x, jnp.float32(rate), key)[0] for rate in (0.0, 0.3, 1.0)]
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[2])
    assert np.any(slopes[1] != slopes[0])


@every
@either
@settings(max_examples=4)
@given(SEEDS, st.sampled_from([0.1, 0.4, 0.8]))
def test_an_address_gives_one_mask_and_another_key_another(kind, bits, seed, rate):
    x, key = inputs(), jax.random.key(seed)
    run, rate = RUNS[kind, bits], jnp.float32(rate)
    y = run(x, rate, key)
    assert np.array_equal(y, run(x, rate, key))
    others = [run(x, rate, jax.random.fold_in(key, step)) for step in range(8)]
    assert any(not np.array_equal(y, other) for other in others)


@pytest.mark.parametrize(("kind", "bits"), ONE_OF_BOTH)
@settings(max_examples=4)
@given(SEEDS, st.sampled_from([0.1, 0.4, 0.8]))
def test_it_is_the_same_where_nothing_is_compiled_around_it(kind, bits, seed, rate):
    x, key, run = inputs(), jax.random.key(seed), partial(KINDS[kind], bits=bits)
    run_both_ends(run, kind, x, key)
    rate = jnp.float32(rate)
    compiled = RUNS[kind, bits](x, rate, key)
    np.testing.assert_allclose(compiled, run(x, rate, key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BINARY)
@either
@settings(max_examples=4)
@given(SEEDS, st.sampled_from([0.05, 0.5, 0.9]))
def test_survivors_are_scaled_exactly(kind, bits, seed, rate):
    x, key = inputs(), jax.random.key(seed)
    y = np.asarray(RUNS[kind, bits](x, jnp.float32(rate), key))
    kept = y != 0
    keep = kept.mean((1, 2, 3), keepdims=True) if kind == "block" else np.full((1,) * 4, 1 - rate)
    expected = np.where(kept, x / np.where(keep > 0, keep, 1), 0)
    np.testing.assert_allclose(y, expected, rtol=3e-6)


@pytest.mark.parametrize(
    ("kind", "axes"), [("shared", (1, 3)), ("channel", (1, 2)), ("path", (1, 2, 3))]
)
@settings(max_examples=6)
@given(SEEDS)
def test_masks_are_constant_along_shared_axes_only(kind, axes, seed):
    keys = jax.random.split(jax.random.key(seed), 12)
    masks = np.stack([RUNS[kind, "fast"](inputs(), jnp.float32(0.5), key) != 0 for key in keys])
    shared = tuple(axis + 1 for axis in axes)
    assert np.all(masks.all(shared) | ~masks.any(shared))
    for axis in {1, 2, 3, 4} - set(shared):
        assert np.any(masks != np.roll(masks, 1, axis))


@pytest.mark.parametrize(("kind", "wrap", "dtype", "bits"), WRAPPED)
def test_forward_and_backward_gates_are_equal_and_dtypes_kept(kind, wrap, dtype, bits):
    """Outputs that are products of inputs and gates have the gates as their slopes."""
    x, key, rate = inputs(dtype), jax.random.key(1), jnp.float32(0.4)

    def single(value, own):
        return KINDS[kind](value, rate, own, bits=bits)

    run = {
        "plain": single,
        "jit": jax.jit(single),
        "remat": jax.checkpoint(single),
        "scan": lambda value, own: jax.lax.scan(
            lambda carry, row: (carry, single(row, own)), 0, value[None]
        )[1][0],
        "vmap": lambda value, own: jax.vmap(single)(
            value[:, None], jax.random.split(own, len(value))
        )[:, 0],
    }[wrap]
    shape = jax.eval_shape(run, x, key).shape
    weights = (1 + uniform_values(2, *shape)).astype(dtype)

    affine = kind in ("alpha", "connect", "connect-batch")

    def both(value):
        y, back = jax.vjp(lambda value: run(value, key), value)
        return y, *back(weights), run(jnp.zeros_like(value), key) if affine else None

    y, slope, at_zero = both(x) if wrap == "plain" else jax.jit(both)(x)
    assert y.dtype == slope.dtype == dtype
    assert slope.shape == x.shape
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    if affine:
        # What the slope says of the inputs is what the outputs are, less a constant.
        left = jnp.sum(slope * x, dtype=jnp.float32)
        right = jnp.sum(weights * (y - at_zero), dtype=jnp.float32)
        np.testing.assert_allclose(left, right, rtol=tolerance)
        return
    assert np.array_equal(slope != 0, y != 0)
    np.testing.assert_allclose(
        np.float32(slope * x), np.float32(weights * y), rtol=tolerance, atol=tolerance
    )


@every
def test_a_map_over_rates_is_a_loop_over_rates(kind):
    x, key, rates = inputs(), jax.random.key(2), jnp.asarray([0.0, 0.2, 0.5, 1.0])
    mapped = jax.jit(jax.vmap(lambda rate: KINDS[kind](x, rate, key)))(rates)
    for rate, y in zip(rates, mapped, strict=True):
        np.testing.assert_allclose(y, RUNS[kind, "threefry"](x, rate, key), rtol=1e-4, atol=1e-4)


@every
def test_nothing_of_the_mask_is_kept_for_the_backward_pass(kind):
    x = inputs()
    _, back = jax.vjp(lambda v: KINDS[kind](v, jnp.float32(0.5), jax.random.key(0)), x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(back))
    # Concrete's slope along the rate, and DropConnect's along the kernel, need the inputs.
    allowed = x.size + KERNEL.size if kind in ("concrete", "connect", "connect-batch") else 0
    assert kept < allowed + 32


# Of the first example, once for each key.
DRAWS = {
    kind: jax.jit(jax.vmap(partial(function, inputs()[:1], bits="fast"), (None, 0)))
    for kind, function in KINDS.items()
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "alpha"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.8])
def test_the_expectation_is_the_deterministic_pass_within_4_sigma(kind, rate):
    """Means over 4,000 masks of the sum of an example, against the spread found among them."""
    x = inputs()[:1]
    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = DRAWS[kind](jnp.float32(rate), keys)
    sums = np.asarray(drawn, np.float64).sum((1, 2, 3, 4))
    expected = float(np.asarray(untouched(kind, x), np.float64).sum())
    spread = sums.std() / np.sqrt(len(sums))
    if kind == "block":
        # Scaled by what is kept of each example: exact for equal values, whatever is dropped.
        y = drawn[:50] / x
        alive = np.any(y, (1, 2, 3, 4))
        np.testing.assert_allclose(np.mean(y, (1, 2, 3, 4))[alive], 1, rtol=1e-5)
        assert abs(sums[np.any(sums[:, None], 1)].mean() / expected - 1) < 0.01 + 4 * spread
        return
    assert abs(sums.mean() - expected) < 4 * spread


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_gaussian_noise_has_the_variance_of_dropout_and_alpha_keeps_both_moments(rate):
    count = 400_000
    ones = jnp.ones(count)
    noise = np.asarray(F.gaussian_dropout(ones, rate, jax.random.key(0)), np.float64)
    variance = rate / (1 - rate)
    assert abs(noise.mean() - 1) < 4 * np.sqrt(variance / count)
    assert abs(noise.var() / variance - 1) < 4 * np.sqrt(2 / count)
    values = normal_values(1, count)
    y = np.asarray(F.alpha_dropout(values, rate, jax.random.key(2)), np.float64)
    fourth = np.mean((y - y.mean()) ** 4)
    assert abs(y.mean()) < 4 / np.sqrt(count)
    assert abs(y.var() - 1) < 4 * np.sqrt((fourth - 1) / count)


def test_normal_numbers_are_those_of_jax_and_uniform_ones_lie_inside():
    key = jax.random.key(5)
    assert np.array_equal(normal(key, (100, 33)), jax.random.normal(key, (100, 33)))
    for bits in BITS:
        u = np.asarray(uniform(key, (1_000_000,), bits), np.float64)
        assert 0 < u.min() < u.max() < 1
        assert abs(u.mean() - 0.5) < 4 / np.sqrt(12e6)


# DropBlock against a reference by loops.


@pytest.mark.parametrize("blocks", [(1, 1), (2, 2), (3, 3), (4, 3), (7, 9)])
def test_blocks_are_those_of_a_loop_over_seeds(blocks):
    shape = (2, 7, 9, 3)
    seeds = np.random.default_rng(0).random(seed_shape(shape, blocks)) < 0.1
    expected = np.zeros(shape, bool)
    for example, row, column, channel in np.argwhere(seeds):
        expected[example, row : row + blocks[0], column : column + blocks[1], channel] = True
    assert np.array_equal(grown(jnp.asarray(seeds), blocks), expected)


@partial(jax.jit, static_argnums=1)
def blocks_on_ones(rate, block):
    ones = jnp.ones((4000, 7, 9, 1))
    return F.drop_block(ones, rate, jax.random.key(0), block_size=block, bits="fast")


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.9])
def test_the_fraction_dropped_by_blocks_is_the_rate(block, rate):
    y = blocks_on_ones(jnp.float32(rate), block)
    dropped = np.asarray(y == 0).mean((1, 2, 3))
    assert abs(dropped.mean() - rate) < 4 * dropped.std() / np.sqrt(len(dropped))


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.floats(0, 0.999))
def test_seed_rates_solve_the_equation_for_the_rate(height, width, side, rate):
    shape, blocks = (1, height, width, 1), (min(side, height), min(side, width))
    chance = float(seed_rate(jnp.float32(rate), shape, blocks))
    alive = np.ones((height, width))
    for row in range(height - blocks[0] + 1):
        for column in range(width - blocks[1] + 1):
            alive[row : row + blocks[0], column : column + blocks[1]] *= 1 - chance
    assert alive.mean() == pytest.approx(1 - rate, abs=2e-5)


def test_no_block_falls_at_rate_0_on_any_map():
    shapes = [(1, size, size, 1) for size in range(3, 33)]
    cases = [(shape, (side, side)) for shape in shapes for side in (2, 3) if side <= shape[1]]
    assert not [case for case in cases if float(seed_rate(jnp.float32(0), *case))]


def test_blocks_fall_differently_on_examples_and_channels():
    y = F.drop_block(jnp.ones((6, 9, 9, 4)), 0.3, jax.random.key(0), block_size=3) == 0
    assert len({mask.tobytes() for mask in np.moveaxis(np.asarray(y), 3, 1).reshape(24, -1)}) == 24


# Concrete dropout against NumPy.


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.1, 0.67, 2.0, 100.0])
def test_concrete_gates_are_those_of_the_paper(rate, temperature):
    x, key = inputs(), jax.random.key(4)
    u = np.asarray(uniform(key, SHAPE), np.float64)
    gates = special.expit(-(special.logit(rate) + special.logit(u)) / temperature)
    mean = special.expit(
        -(special.logit(rate) + temperature * special.logit((np.arange(200_000) + 0.5) / 200_000))
    ).mean()
    ours = F.concrete_dropout(x, jnp.float32(rate), key, temperature=temperature)
    np.testing.assert_allclose(ours, x * gates / mean, rtol=2e-3, atol=1e-5)


@jax.jit
@jax.value_and_grad
def square_and_slope(chance):
    y = F.concrete_dropout(inputs(), chance, jax.random.key(6), temperature=0.5)
    return jnp.mean(y**2)


@settings(max_examples=10)
@given(st.floats(0.02, 0.98))
def test_the_slope_along_a_learned_rate_is_the_finite_difference(rate):
    step = 1e-3
    left, (_, slope), right = (
        square_and_slope(jnp.float32(rate + move)) for move in (-step, 0, step)
    )
    difference = (right[0] - left[0]) / (2 * step)
    assert float(slope) == pytest.approx(float(difference), rel=0.05, abs=0.02)


def test_a_learned_rates_slope_is_finite_and_zero_at_the_ends():
    def loss(chance):
        return F.concrete_dropout(inputs(), chance, jax.random.key(0)).sum()

    for rate in (0.0, 1.0):
        assert float(jax.grad(loss)(jnp.float32(rate))) == 0.0


@given(st.floats(0.01, 0.99), st.integers(1, 1000), st.integers(1, 10**6))
def test_the_concrete_regulariser_is_that_of_the_paper(rate, gates, examples):
    kernel = np.asarray(KERNEL, np.float64)
    rate = float(np.float32(rate))
    entropy = -(special.xlogy(rate, rate) + special.xlog1py(1 - rate, -rate))
    expected = (0.02**2 / 2 * (kernel**2).sum() / (1 - rate) - gates * entropy) / examples
    found = F.concrete_regulariser(jnp.float32(rate), KERNEL, gates, examples, 0.02)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("logit", [-200.0, -20.0, 17.0, 50.0, 200.0])
def test_the_regulariser_of_a_saturated_rate_has_a_slope(logit):
    value, slope = jax.value_and_grad(F.logit_regulariser)(logit, KERNEL, 10, 100)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert logit != 17 or slope > 0


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_regulariser_is_finite_at_both_ends(rate):
    regulariser = jax.value_and_grad(F.concrete_regulariser)
    assert np.all(np.isfinite(regulariser(jnp.float32(rate), KERNEL, 10, 100)))


@every
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_rate_1_gives_zeros_of_inputs_that_are_not_finite(kind, bad):
    x = inputs().at[0, 0, 0, 0].set(bad)
    for rate in (jnp.float32(1), 1):
        assert not np.any(KINDS[kind](x, rate, jax.random.key(0)))


@pytest.mark.parametrize("kind", ["element", "alpha"])
def test_half_precision_keeps_the_mean_and_has_a_slope_near_rate_1(kind):
    x, key = jnp.full((3,), 1.0, jnp.float16), jax.random.key(0)
    slope = jax.grad(lambda v: KINDS[kind](v, jnp.float32(1 - 2**-20), key).sum())(x)
    assert np.all(np.isfinite(slope))
    ones = jnp.ones(1000, jnp.bfloat16) * 251
    y = np.float32(KINDS["element"](ones, jnp.float32(0.3), key))
    # One rounding, of the product; a scale rounded as well would be 0.16 % too small.
    assert set(np.unique(y)) == {0.0, float(jnp.bfloat16(251 / 0.7))}


# DropConnect.


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("traced", [False, True])
def test_an_activation_behind_dropconnect_has_slopes_at_0(rate, traced):
    layer = DropConnectDense(3, rate, activation=jax.nn.relu, deterministic=True)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones((2, 6)))
    if traced:
        variables = {**variables, "rates": {"rate": jnp.float32(rate)}}
    slope = jax.jit(jax.grad(lambda v, x: layer.apply(v, x).sum(), (0, 1)))
    slopes = slope(variables, jnp.zeros((2, 6)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_moments_of_dropconnect_are_those_of_100_000_masks(rate):
    x = normal_values(1, 6)
    mean, variance = F.drop_connect_moments(x, KERNEL, rate)
    many = jnp.broadcast_to(x, (100_000, 6))
    y = np.asarray(F.drop_connect(many, KERNEL, rate, jax.random.key(2), bits="fast"), np.float64)
    deviation = y.std(0)
    fourth = ((y - y.mean(0)) ** 4).mean(0)
    assert np.all(np.abs(y.mean(0) - mean) < 4 * deviation / np.sqrt(len(y)))
    spread = np.sqrt((fourth - deviation**4) / len(y))
    assert np.all(np.abs(y.var(0) - variance) < 4 * spread)
    assert not np.any(F.drop_connect_moments(x, KERNEL, 1.0)[1])


def test_examples_have_weights_of_their_own_or_share_them():
    x, key = jnp.ones((7, 6)), jax.random.key(0)
    own = np.asarray(F.drop_connect(x, KERNEL, 0.5, key))
    shared = np.asarray(F.drop_connect(x, KERNEL, 0.5, key, per_example=False))
    assert len(np.unique(own, axis=0)) == 7
    assert len(np.unique(shared, axis=0)) == 1


@pytest.mark.parametrize(
    ("kind", "bits"), [case for case in ONE_OF_BOTH if case.values[0] != "connect-batch"]
)
def test_an_examples_mask_does_not_depend_on_the_batch_behind_it(kind, bits):
    x, key, rate = inputs(), jax.random.key(0), jnp.float32(0.4)
    whole, part = RUNS[kind, bits](x, rate, key), KINDS[kind](x[:2], rate, key, bits=bits)
    np.testing.assert_allclose(whole[:2], part, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: F.channel_dropout(jnp.ones((3, 4)), 0.5, k), "channel dropout needs"),
        (lambda k: F.drop_block(jnp.ones((3, 4)), 0.5, k), "block dropout needs"),
        (lambda k: F.drop_path(jnp.ones(()), 0.5, k), "path dropout needs"),
        (lambda k: F.drop_block(inputs(), 0.5, k, block_size=0), "block_size is 0"),
        (lambda k: F.drop_block(inputs(), 0.5, k, block_size=2.5), "block_size is 2.5"),
        (lambda k: F.drop_block(inputs(), 0.5, k, block_size=None), "block_size is None"),
        (lambda k: F.drop_block(inputs(), 0.5, k, block_size=float("nan")), "block_size is nan"),
        (lambda k: F.concrete_dropout(inputs(), 0.5, k, temperature=0), "temperature is 0"),
        (lambda k: F.concrete_dropout(inputs(), 0.5, k, temperature="a"), "temperature is 'a'"),
        (lambda k: F.drop_connect(jnp.ones((2, 1)), [[1.0]], 0.5, k), "not list"),
        (lambda k: F.drop_connect(jnp.ones((2, 6)), KERNEL, 0.5, None), "key is expected"),
        (lambda k: F.drop_path([[1.0]], 0.5, k), "not list"),
        (lambda k: F.drop_connect(jnp.ones((2, 3)), KERNEL, 0.5, k), "cannot multiply"),
        (lambda k: F.gaussian_dropout(inputs(), 1.5, k), "rate is 1.5"),
        (lambda k: F.alpha_dropout(jnp.arange(3), 0.5, k), "float array"),
        (lambda k: F.drop_connect(jnp.ones((2, 6)), KERNEL, float("nan"), k), "rate is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call(jax.random.key(0))


def test_no_inputs_give_zeros():
    y = F.drop_connect(jnp.ones((2, 0)), jnp.ones((0, 3)), 0.5, jax.random.key(0))
    assert np.array_equal(y, np.zeros((2, 3)))
