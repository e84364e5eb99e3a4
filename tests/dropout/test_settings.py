"""Layers follow JAX's own settings as Flax's do; words keep their meaning under all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from thinned.dropout.bits import random_bits
from thinned.dropout.linen import Dropout

BOTH = pytest.mark.parametrize(
    ("partitionable", "double"), [(True, False), (False, False), (True, True), (False, True)]
)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_are_those_of_flax(partitionable, double, dtype):
    with jax.threefry_partitionable(partitionable), jax.enable_x64(double):
        x = jnp.ones((7, 33), dtype)
        found, expected = (
            layer(0.3, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(3)})
            for layer in (Dropout, nn.Dropout)
        )
        assert found.dtype == expected.dtype
        assert np.array_equal(found == 0, expected == 0)
        np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-2)


@BOTH
def test_words_are_those_of_jax(partitionable, double):
    with jax.threefry_partitionable(partitionable), jax.enable_x64(double):
        key = jax.random.key(4)
        expected = jax.random.bits(key, (5, 7), jnp.uint32)
        assert np.array_equal(random_bits(key, (5, 7)), expected)


def test_fast_words_do_not_depend_on_settings():
    usual = random_bits(jax.random.key(4), (5, 7), "fast")
    with jax.threefry_partitionable(False), jax.enable_x64(True):
        assert np.array_equal(random_bits(jax.random.key(4), (5, 7), "fast"), usual)


@BOTH
def test_gradients_use_the_mask_of_the_forward_pass(partitionable, double):
    layer = Dropout(0.3, deterministic=False)
    with jax.threefry_partitionable(partitionable), jax.enable_x64(double):
        x = jnp.ones((4, 9), jnp.float32)

        def total(x):
            return layer.apply({}, x, rngs={"dropout": jax.random.key(3)})

        out, pull = jax.vjp(total, x)
        assert np.array_equal(pull(jnp.ones_like(out))[0], out)
