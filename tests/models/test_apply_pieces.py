"""Photos in pieces."""

import jax.numpy as jnp
import numpy as np
import pytest

from thinned.models.apply import in_pieces


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_image_gets_its_own_whatever_the_pieces(count: int) -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(count, 96, 96, 3)), jnp.float32)
    seen: list[int] = []

    def sums(part: jnp.ndarray) -> jnp.ndarray:
        seen.append(len(part))
        return part.sum((1, 2))

    np.testing.assert_allclose(in_pieces(sums, images), images.sum((1, 2)), rtol=1e-6, atol=1e-3)
    assert seen == [2 if count == 6 else count]
