"""Convolution and pooling in the forms that are fast where they run.

On a CPU, XLA rewrites the backward convolutions into its fast form only outside loops (JAX issue
12868); inside the compiled loop of `thinned.engine.step` they would be 20 to 60 times slower. Here
the gradients are written in that fast form from the start. What was chosen, and by which
measurement: docs/performance.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from thinned.models.depthwise import (
    Pads,
    depthwise_convolution,
    image_gradient,
    output_sizes,
    pad,
    window,
)

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_OTHER = ("preferred_element_type", "batch_group_count", "out_sharding")
_FEW_CHANNELS = 8
_NO_PADS: Pads = ((0, 0), (0, 0))


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

    On a CPU, square kernels at stride 1 or 2, dense or with a kernel for each channel, and those
    that tile the images (1 x 1, patches) take forms that are fast inside loops, gradients included,
    with padding SAME, VALID or as pairs. Everything else, and every other backend, goes to
    `jax.lax` unchanged.
    """
    usual = precision is None and not any(other.get(name) for name in _OTHER)
    spread = {*_each(lhs_dilation), *_each(rhs_dilation)} - {1}
    laid = usual and not spread and _is_flax_layout(lhs, rhs, dimension_numbers)
    if laid and jax.default_backend() == "cpu":
        fast = _fast_form(lhs, rhs, _each(window_strides), padding, feature_group_count)
        if fast is not None:
            return fast
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


def _is_flax_layout(images: jax.Array, kernel: jax.Array, numbers: Any) -> bool:
    if kernel.ndim != 4:
        return False
    given, usual = (
        lax.conv_dimension_numbers(images.shape, kernel.shape, layout)
        for layout in (numbers, _LAYOUT)
    )
    return given == usual


def _fast_form(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any, groups: int
) -> jax.Array | None:
    """The convolution where there is a fast form of it, in the layout of Flax."""
    if kernel.shape[0] != kernel.shape[1] or len({*strides}) != 1:
        return None
    if images.dtype != kernel.dtype or not jnp.issubdtype(images.dtype, jnp.floating):
        return None
    side, stride, pads = kernel.shape[0], strides[0], _pads(images, kernel, strides, padding)
    if groups == 1 and side in (1, stride) and pads == _NO_PADS:
        return _tiled(images, kernel, stride)
    within = all(0 <= edge <= side - stride for both in pads for edge in both)
    if stride > 2 or not within or min(output_sizes(images.shape, kernel.shape, stride, pads)) < 1:
        return None
    if groups == 1:
        return convolution(images, kernel, stride, pads)
    if groups == images.shape[-1] == kernel.shape[-1]:
        return depthwise_convolution(images, kernel, stride, pads)
    return None


def _pads(images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _tiled(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution whose kernel meets each pixel at most once: 1 x 1, or as wide as its stride."""
    side, _, channels, features = kernel.shape
    if side == 1:
        return convolution(images[:, ::stride, ::stride], kernel, 1, _NO_PADS)
    batch, rows, columns = images.shape[0], images.shape[1] // side, images.shape[2] // side
    whole = images[:, : rows * side, : columns * side]
    patches = whole.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
    flat = patches.reshape(batch, rows, columns, side * side * channels)
    return convolution(flat, kernel.reshape(1, 1, -1, features), 1, _NO_PADS)


def same_convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with an odd square kernel, stride 1 and zero padding that keeps the size.

    Args:
        images: float [batch, height, width, channel].
        kernel: float [size, size, channel, feature], size odd.

    Returns:
        float [batch, height, width, feature].
    """
    edge = kernel.shape[0] // 2
    return convolution(images, kernel, 1, ((edge, edge), (edge, edge)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Dense convolution.

    Args:
        images: float [batch, height, width, channel].
        kernel: float [side, side, channel, feature], of the same dtype; at stride 1 it need not be
            square.
        stride: 1 or 2, in both directions, at most the side.
        pads: zeros around the images.

    Returns:
        float [batch, row, column, feature].
    """
    if stride == 2 and kernel.shape[0] == 3 and images.shape[-1] < _FEW_CHANNELS:
        images, kernel, pads = _space_to_depth(images, kernel, pads)
        stride = 1
    if kernel.shape[:2] == (1, 1) and pads == _NO_PADS:
        return jnp.einsum("bhwc,cf->bhwf", images, kernel[0, 0])
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT
    )


def _space_to_depth(
    images: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, jax.Array, Pads]:
    """The same convolution at stride 1, where 2 x 2 pixels have become the channels of one.

    With few channels XLA's convolution leaves most of a vector register empty.
    """
    rows, columns = (size + 1 for size in output_sizes(images.shape, kernel.shape, 2, pads))
    channels, features = kernel.shape[2:]
    around = [
        (low, max(0, 2 * count - size - low))
        for size, count, (low, _) in zip(images.shape[1:3], (rows, columns), pads, strict=True)
    ]
    padded = pad(images, (around[0], around[1]))[:, : 2 * rows, : 2 * columns]
    squares = padded.reshape(images.shape[0], rows, 2, columns, 2, channels).swapaxes(2, 3)
    larger = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    parts = larger.reshape(2, 2, 2, 2, channels, features).swapaxes(1, 2)
    return (
        squares.reshape(images.shape[0], rows, columns, 4 * channels),
        parts.reshape(2, 2, 4 * channels, features),
        _NO_PADS,
    )


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolution(images, kernel, stride, pads), (images, kernel)


def _backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved

    def spread(part: jax.Array, around: Pads) -> jax.Array:
        return convolution(gradient, part.swapaxes(2, 3), 1, around)

    to_images = image_gradient(spread, kernel, gradient.shape, images.shape, stride, pads)
    return to_images, _kernel_gradient(pad(images, pads), gradient, kernel.shape, stride)


convolution.defvjp(_forward, _backward)


def _kernel_gradient(
    padded: jax.Array, gradient: jax.Array, shape: tuple[int, ...], stride: int
) -> jax.Array:
    """Gradient of the kernel: one matrix product for each of its taps, or one for all.

    With few channels the taps' products are too thin to be fast, so they are laid side by side.
    """
    height, width, channels, features = shape
    sizes = (gradient.shape[1], gradient.shape[2])
    taps = [
        window(padded, row, column, stride, sizes).reshape(-1, channels)
        for row in range(height)
        for column in range(width)
    ]
    flat = gradient.reshape(-1, features)
    if channels < _FEW_CHANNELS:
        product = jnp.concatenate(taps, -1).T @ flat
    else:
        product = jnp.stack([tap.T @ flat for tap in taps])
    return product.reshape(shape)


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
