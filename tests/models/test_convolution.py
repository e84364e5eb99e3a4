import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from thinned.models.convolution import average_pool, conv_general_dilated


def both(shape, features, size, **options):
    ours = nn.Conv(features, (size, size), conv_general_dilated=conv_general_dilated, **options)
    theirs = nn.Conv(features, (size, size), **options)
    images = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(theirs.init)(jax.random.key(1), images)
    return ours, theirs, params, images


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 7, 5, 3), (1, 14, 14, 16), (4, 4, 6, 9)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_values_and_gradients_are_those_of_flax(shape, size):
    ours, theirs, params, images = both(shape, 6, size)

    def loss(module):
        run = jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(module.apply(p, x))), argnums=(0, 1))
        return jax.jit(run)(params, images)

    # Sums of up to a few thousand products in f32, in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        loss(ours),
        loss(theirs),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"feature_group_count": 3, "features": 9},
        {"strides": (2, 1), "padding": [(1, 2), (0, 1)]},
        {"strides": 3, "padding": 1},
        {"padding": [(3, 3), (3, 3)]},
        {"padding": [(-1, 0), (0, 0)]},
    ],
)
def test_every_other_convolution_is_left_to_jax(options):
    options = {"features": 6, **options}
    ours, theirs, params, images = both((2, 9, 9, 3), size=3, **options)
    assert np.array_equal(ours.apply(params, images), theirs.apply(params, images))


LAYOUT = ("NHWC", "HWIO", "NHWC")
PADDINGS = ("SAME", "SAME_LOWER", "VALID", "symmetric")


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def options_of(side, stride, padding, groups):
    edge = (side - 1) // 2
    pads = [(edge, edge)] * 2 if padding == "symmetric" else padding
    return {
        "window_strides": (stride, stride),
        "padding": pads,
        "dimension_numbers": LAYOUT,
        "feature_group_count": groups,
    }


@st.composite
def convolutions(draw):
    """Images, a kernel and options of what real networks are made of; sizes odd and even."""
    depthwise, side = draw(st.booleans()), draw(st.sampled_from([1, 2, 3, 4, 5, 7]))
    stride = draw(st.sampled_from([1, 2, side]))
    height, width = draw(st.integers(side, 13)), draw(st.integers(side, 13))
    channels = draw(st.sampled_from([1, 3, 8, 9]))
    features = channels if depthwise else draw(st.integers(1, 9))
    images = numbers(0, draw(st.integers(1, 3)), height, width, channels)
    kernel = numbers(1, side, side, 1 if depthwise else channels, features)
    groups = channels if depthwise else 1
    return images, kernel, options_of(side, stride, draw(st.sampled_from(PADDINGS)), groups)


def value_and_gradients(convolve, images, kernel, options):
    def loss(images, kernel):
        out = convolve(images, kernel, **options)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(images, kernel)


@given(convolutions())
@settings(max_examples=15, deadline=None)
def test_values_and_gradients_are_those_of_jax(case):
    ours = value_and_gradients(conv_general_dilated, *case)
    theirs = value_and_gradients(lax.conv_general_dilated, *case)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-4), ours, theirs)


FAST = {
    "depthwise": ((2, 6, 7, 4), (3, 3, 1, 4), options_of(3, 2, "SAME", 4)),
    "depthwise, wide": ((2, 6, 6, 4), (5, 5, 1, 4), options_of(5, 1, "symmetric", 4)),
    "stem": ((2, 8, 7, 3), (3, 3, 3, 5), options_of(3, 2, "SAME", 1)),
    "strided": ((2, 7, 6, 9), (3, 3, 9, 5), options_of(3, 2, "symmetric", 1)),
    "point": ((2, 5, 6, 4), (1, 1, 4, 5), options_of(1, 2, "VALID", 1)),
    "patches": ((2, 8, 8, 3), (4, 4, 3, 5), options_of(4, 4, "VALID", 1)),
}


def fast(name):
    images, kernel, options = FAST[name]
    return numbers(2, *images), numbers(3, *kernel), options


@pytest.mark.parametrize("name", FAST)
def test_no_grouped_and_no_dilated_convolution_is_left(name):
    """These are the forms that XLA's CPU backend is slow at."""
    images, kernel, options = fast(name)
    both = jax.jit(lambda x, k: value_and_gradients(conv_general_dilated, x, k, options))
    text = both.lower(images, kernel).as_text()
    assert set(re.findall(r"_dilate = \[(.*?)\]", text)) <= {"1, 1"}
    assert set(re.findall(r"_group_count = (\d+)", text)) <= {"1"}


@pytest.mark.parametrize("name", ["depthwise, wide", "strided", "point"])
def test_half_precision_sums_in_single(name):
    images, kernel, options = fast(name)
    half = (jnp.bfloat16(images), jnp.bfloat16(kernel))
    exact = lax.conv_general_dilated(*map(jnp.float32, half), **options)
    ours = jax.jit(partial(conv_general_dilated, **options))(*half)
    assert ours.dtype == jnp.bfloat16
    # One rounding to 8 bits, of a value up to the largest.
    np.testing.assert_allclose(
        jnp.float32(ours), exact, rtol=2**-8, atol=2**-9 * float(jnp.abs(exact).max())
    )
    slopes = jax.grad(
        lambda x, k: jnp.sum(jnp.float32(conv_general_dilated(x, k, **options))), (0, 1)
    )
    gradients = jax.jit(slopes)(*half)
    assert [each.dtype for each in gradients] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("name", FAST)
def test_images_may_be_mapped_over_and_batches_left_open(name):
    images, kernel, options = fast(name)

    @jax.jit
    def convolve(x):
        return conv_general_dilated(x, kernel, **options)

    expected = convolve(images)
    one_by_one = jax.jit(jax.vmap(lambda image: convolve(image[None])[0]))(images)
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-5, atol=1e-5)
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32)
    exported = export.export(convolve)(shape)
    np.testing.assert_allclose(exported.call(images[:1]), expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAST)
def test_second_derivatives_are_those_of_jax(name):
    images, kernel, options = fast(name)

    def second(convolve):
        def first(x, k):
            to_images, to_kernel = jax.grad(
                lambda x, k: jnp.sum(jnp.sin(convolve(x, k, **options))), (0, 1)
            )(x, k)
            return jnp.sum(to_images**2) + jnp.sum(to_kernel**2)

        return jax.jit(jax.grad(first, (0, 1)))(images, kernel)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
        second(conv_general_dilated),
        second(lax.conv_general_dilated),
    )


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 5, 2), (3, 2, 3, 1)])
def test_pooling_and_its_gradient_are_those_of_flax(shape):
    images = jax.random.normal(jax.random.key(2), shape)

    def run(pool):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x)))))(images)

    theirs = run(lambda x: nn.avg_pool(x, (2, 2), (2, 2)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        run(average_pool),
        theirs,
    )
