import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from thinned.models.convolution import average_pool, conv_general_dilated

pytestmark = pytest.mark.optimised


def both(shape, features, size, **options):
    ours = nn.Conv(features, (size, size), conv_general_dilated=conv_general_dilated, **options)
    theirs = nn.Conv(features, (size, size), **options)
    images = jax.random.normal(jax.random.key(0), shape)
    params = theirs.init(jax.random.key(1), images)
    return ours, theirs, params, images


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 7, 5, 3), (1, 14, 14, 16), (4, 4, 6, 9)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_values_and_gradients_are_those_of_flax(shape, size):
    ours, theirs, params, images = both(shape, 6, size)

    def loss(module):
        return jax.value_and_grad(
            lambda p, x: jnp.sum(jnp.sin(module.apply(p, x))), argnums=(0, 1)
        )(params, images)

    # Sums of up to a few thousand products in f32, in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        loss(ours),
        loss(theirs),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": "VALID"},
        {"kernel_dilation": 2},
        {"feature_group_count": 3},
        {"strides": (2, 1), "padding": [(1, 2), (0, 1)]},
    ],
)
def test_every_other_convolution_is_left_to_jax(options):
    ours, theirs, params, images = both((2, 9, 9, 3), 6, 3, **options)
    assert np.array_equal(ours.apply(params, images), theirs.apply(params, images))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 5, 2), (3, 2, 3, 1)])
def test_pooling_and_its_gradient_are_those_of_flax(shape):
    images = jax.random.normal(jax.random.key(2), shape)

    def run(pool):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x))))(images)

    theirs = run(lambda x: nn.avg_pool(x, (2, 2), (2, 2)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        run(average_pool),
        theirs,
    )
