"""Convolution and pooling in the forms that are fast where they run.

On a CPU, XLA rewrites the backward convolutions into its fast form only outside loops (JAX issue
12868); inside the compiled loop of `thinned.engine.step` they would be some 20 times slower.
Here the gradients are written in that fast form from the start. What was chosen, and by which
measurement: docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **other: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for the argument of that name of ``flax.linen.Conv``.

    Odd square kernels at stride 1 with padding SAME take gradients that are fast inside loops on a
    CPU; everything else, and every other backend, goes to `jax.lax` unchanged.
    """
    spread = any(
        d != 1 for d in (*_each(window_strides), *_each(lhs_dilation), *_each(rhs_dilation))
    )
    square = rhs.ndim == 4 and rhs.shape[0] == rhs.shape[1] and rhs.shape[0] % 2 == 1
    simple = square and not spread and padding == "SAME" and feature_group_count == 1
    exact = precision is None and not other.get("preferred_element_type")
    if simple and exact and jax.default_backend() == "cpu":
        return same_convolution(lhs, rhs)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=precision,
        **other,
    )


@jax.custom_vjp
def same_convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with an odd square kernel, stride 1 and zero padding that keeps the size.

    Args:
        images: float [batch, height, width, channel].
        kernel: float [size, size, channel, feature], size odd.

    Returns:
        float [batch, height, width, feature].
    """
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _forward(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return same_convolution(images, kernel), (images, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return same_convolution(gradient, flipped), _kernel_gradient(images, gradient, kernel.shape[0])


same_convolution.defvjp(_forward, _backward)


def _kernel_gradient(images: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """Gradient of the kernel: one matrix product for each of its taps, or one for all.

    With few channels the taps' products are too thin to be fast, so they are laid side by side.
    """
    _, height, width, channels = images.shape
    features = gradient.shape[-1]
    edge = size // 2
    padded = jnp.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    taps = [
        padded[:, row : row + height, column : column + width].reshape(-1, channels)
        for row in range(size)
        for column in range(size)
    ]
    flat = gradient.reshape(-1, features)
    if channels < 8:
        product = jnp.concatenate(taps, -1).T @ flat
    else:
        product = jnp.stack([tap.T @ flat for tap in taps])
    return product.reshape(size, size, channels, features)


@jax.custom_vjp
def average_pool(images: jax.Array) -> jax.Array:
    """Mean over windows of 2 x 2, stride 2; an odd last row or column is left out, as in Flax.

    Args:
        images: float [batch, height, width, channel], height and width at least 2.

    Returns:
        float [batch, height // 2, width // 2, channel].
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    windows = even.reshape(batch, height // 2, 2, width // 2, 2, channels)
    # Sums of slices fuse into what comes before and after; on a CPU a reduction would not.
    upper = windows[:, :, 0, :, 0] + windows[:, :, 0, :, 1]
    return 0.25 * (upper + (windows[:, :, 1, :, 0] + windows[:, :, 1, :, 1]))


def max_pool(images: jax.Array) -> jax.Array:
    """Maximum over windows of 2 x 2, stride 2; an odd last row or column is left out, as in Flax.

    Where elements of a window are equal, each gets its part of the gradient.

    Args:
        images: float [batch, height, width, channel], height and width at least 2.

    Returns:
        float [batch, height // 2, width // 2, channel].
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    windows = even.reshape(batch, height // 2, 2, width // 2, 2, channels)
    # A reduction over windows would be differentiated by a scatter, slow on a CPU.
    upper = jnp.maximum(windows[:, :, 0, :, 0], windows[:, :, 0, :, 1])
    return jnp.maximum(upper, jnp.maximum(windows[:, :, 1, :, 0], windows[:, :, 1, :, 1]))


def _pool_forward(images: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
    return average_pool(images), (images.shape[1], images.shape[2])


def _pool_backward(size: tuple[int, int], gradient: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = gradient.shape
    quarter = (0.25 * gradient)[:, :, None, :, None]
    spread = jnp.broadcast_to(quarter, (batch, rows, 2, columns, 2, channels))
    even = spread.reshape(batch, rows * 2, columns * 2, channels)
    missing = ((0, 0), (0, size[0] - rows * 2), (0, size[1] - columns * 2), (0, 0))
    return (jnp.pad(even, missing),)


average_pool.defvjp(_pool_forward, _pool_backward)


def _each(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
