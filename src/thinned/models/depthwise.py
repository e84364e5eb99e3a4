"""Depthwise convolution as shifted multiply-adds, and the steps it shares with other convolutions.

XLA's CPU backend has no fast grouped convolution. Written as one multiply-add of whole maps for
each element of the kernel, all fuse into one loop, with the normalisation and the activation
behind. docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, left and right: from 0 to the side of the kernel less the stride."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_convolution(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    """Convolution in which each channel has a kernel of its own. Sums are taken in f32 or wider.

    Args:
        images: float [batch, height, width, channel].
        kernel: float [side, side, 1, channel], of the same dtype.
        stride: 1 or 2, in both directions.
        pads: zeros around the images.

    Returns:
        float [batch, row, column, channel].
    """
    sizes = output_sizes(images.shape, kernel.shape, stride, pads)
    return _multiply_adds(pad(images, pads), kernel, stride, sizes)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_convolution(images, kernel, stride, pads), (images, kernel)


def _backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved

    def spread(part: jax.Array, around: Pads) -> jax.Array:
        sizes = output_sizes(gradient.shape, part.shape, 1, around)
        return _multiply_adds(pad(gradient, around), part, 1, sizes)

    to_images = image_gradient(spread, kernel, gradient.shape, images.shape, stride, pads)
    return to_images, _kernel_gradient(pad(images, pads), gradient, kernel.shape[0], stride)


depthwise_convolution.defvjp(_forward, _backward)


def _multiply_adds(
    padded: jax.Array, kernel: jax.Array, stride: int, sizes: tuple[int, int]
) -> jax.Array:
    wide, taps = _wide(padded), _wide(kernel)
    products = (
        window(wide, row, column, stride, sizes) * taps[row, column, 0]
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    )
    return reduce(add, products).astype(padded.dtype)


def _kernel_gradient(padded: jax.Array, gradient: jax.Array, side: int, stride: int) -> jax.Array:
    """Row by row of each image, products are added to rows of sums, for each column of the kernel.

    A reduction over batch, rows and columns becomes a strided scalar loop on a CPU, five to ten
    times slower; the rows of sums stay in the cache.
    """
    batch, rows, columns, channels = gradient.shape
    reach = (columns - 1) * stride + 1

    def body(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        image, row = index // rows, index % rows
        one = lax.dynamic_slice(gradient, (image, row, 0, 0), (1, 1, columns, channels))
        start, size = (image, row * stride, 0, 0), (1, side, *padded.shape[2:])
        band, wide = _wide(lax.dynamic_slice(padded, start, size)[0]), _wide(one[0])
        return [
            total + band[:, left : left + reach : stride] * wide for left, total in enumerate(sums)
        ]

    zero = _wide(jnp.zeros((side, columns, channels), gradient.dtype))
    sums = lax.fori_loop(0, batch * rows, body, [zero] * side)
    taps = jnp.stack([_sum_of_columns(column) for column in sums], 1)
    return taps[:, :, None].astype(gradient.dtype)


def _sum_of_columns(sums: jax.Array) -> jax.Array:
    """Sum [a, column, b] over columns by halves, which fuse where a reduction would not."""
    while sums.shape[1] % 2 == 0:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return reduce(add, (sums[:, column] for column in range(sums.shape[1])))


def _wide(values: jax.Array) -> jax.Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def pad(images: jax.Array, pads: Pads) -> jax.Array:
    """Images [batch, height, width, channel] with zeros around."""
    return jnp.pad(images, ((0, 0), *pads, (0, 0)))


def output_sizes(
    images: tuple[int, ...], kernel: tuple[int, ...], stride: int, pads: Pads
) -> tuple[int, int]:
    """Rows and columns of what a convolution returns, given shapes."""
    rows, columns = (
        (size + sum(around) - side) // stride + 1
        for size, side, around in zip(images[1:3], kernel[:2], pads, strict=True)
    )
    return rows, columns


def window(
    padded: jax.Array, row: int, column: int, stride: int, sizes: tuple[int, int]
) -> jax.Array:
    """What one element of a kernel is multiplied with: [batch, row, column, channel]."""
    down, right = ((size - 1) * stride + 1 for size in sizes)
    return padded[:, row : row + down : stride, column : column + right : stride]


def image_gradient(
    spread: Callable[[jax.Array, Pads], jax.Array],
    kernel: jax.Array,
    gradient: tuple[int, ...],
    images: tuple[int, ...],
    stride: int,
    pads: Pads,
) -> jax.Array:
    """Gradient of the images of a convolution, from convolutions at stride 1.

    Rows and columns of images that are `stride` apart meet the same elements of the kernel, so each
    such phase is a convolution of the gradient with a part of the kernel, turned by 180 degrees.
    Without phases the gradient would be mostly zeros, and the work `stride` squared times more.

    Args:
        spread: convolves the gradient with a turned part of the kernel and given zeros around it.
        kernel: float [side, side, ...].
        gradient, images: shapes.
        stride, pads: of the convolution.
    """
    firsts = [low // stride for low, _ in pads]
    counts = [
        -(-(size + low) // stride) - first
        for size, (low, _), first in zip(images[1:3], pads, firsts, strict=True)
    ]

    def phase(*begins: int) -> jax.Array:
        part = kernel[begins[0] :: stride, begins[1] :: stride]
        around = [
            (side - 1 - first, count + first - size)
            for side, size, first, count in zip(
                part.shape[:2], gradient[1:3], firsts, counts, strict=True
            )
        ]
        return spread(jnp.flip(part, (0, 1)), (around[0], around[1]))

    if stride == 1:
        return phase(0, 0)
    steps = range(stride)
    woven = jnp.stack([jnp.stack([phase(i, j) for j in steps], 3) for i in steps], 2)
    whole = woven.reshape(images[0], counts[0] * stride, counts[1] * stride, images[3])
    (top, _), (left, _) = pads
    return whole[:, top % stride :, left % stride :][:, : images[1], : images[2]]
