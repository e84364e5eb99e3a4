"""`thinned doctor --stack`: whether JAX computes right here, by programs whose answer is known.

A compiler that miscompiles says nothing: training goes on, with wrong numbers. What is tried takes
seconds: programs that versions of JAX are known to have got wrong, products and convolutions as
networks use them against NumPy and SciPy in double precision, dropout's words against fixed ones,
and a training step against itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax
from scipy.signal import correlate

from thinned.core.rng import fixed_settings
from thinned.data.batch import Batch
from thinned.dropout.bits import random_bits
from thinned.engine.optim import adam
from thinned.engine.step import Chunk, create_state, train_steps
from thinned.models.cnn import CNN
from thinned.models.convolution import average_pool, max_pool, same_convolution

_TOLERANCE = 3e-5
"""Largest error, as a part of the largest value, that sums of f32 in any order may have."""

Answer = tuple[Any, Any]
"""What JAX computed, and what is right."""


class Trial(NamedTuple):
    """A program with a known answer.

    Attributes:
        name: what is tried.
        run: computes the answer, and what it should be.
        exact: whether every bit counts.
    """

    name: str
    run: Callable[[], Answer]
    exact: bool = False


@dataclass(frozen=True)
class Stack:
    """What came of the trials; its text is a report for people.

    Attributes:
        errors: of each trial by name, as a part of the largest right value; infinite for NaN.
        wrong: names of those that are too large.
    """

    errors: dict[str, float]
    wrong: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all answers were right."""
        return not self.wrong

    def __str__(self) -> str:
        """A line for each trial, below one for what was tried."""
        device = jax.devices()[0]
        lines = [f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {device.device_kind}"]
        for name, error in self.errors.items():
            lines.append(f"{'WRONG' if name in self.wrong else 'right'}  {error:8.1e}  {name}")
        return "\n".join(lines)


@fixed_settings()
def examine(trials: Sequence[Trial] | None = None) -> Stack:
    """Try programs with known answers on JAX's default device.

    Args:
        trials: the programs; all that are known here when absent.
    """
    errors: dict[str, float] = {}
    wrong: list[str] = []
    # Half of a product's digits are no error where an accelerator was asked for speed.
    with jax.default_matmul_precision("highest"):
        for trial in TRIALS if trials is None else trials:
            errors[trial.name] = error = _error(*trial.run())
            if error > (0.0 if trial.exact else _TOLERANCE):
                wrong.append(trial.name)
    return Stack(errors, tuple(wrong))


def _error(computed: Any, right: Any) -> float:
    pairs = list(zip(jax.tree.leaves(computed), jax.tree.leaves(right), strict=True))
    return max(_difference(np.asarray(one), np.asarray(two)) for one, two in pairs)


def _difference(computed: np.ndarray, right: np.ndarray) -> float:
    if computed.shape != right.shape or not np.all(np.isfinite(computed)):
        return float("inf")
    gap = np.abs(computed.astype(np.float64) - right.astype(np.float64)).max()
    return float(gap / max(np.abs(right.astype(np.float64)).max(), 1e-30))


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def _rows() -> Answer:
    rows = _numbers(32_769, 3)
    sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return sums, np.square(rows, dtype=np.float64).sum(1)


def _padding() -> Answer:
    rows = _numbers(60, 4)

    @jax.jit
    def blocks(rows: jax.Array) -> jax.Array:
        padded = jnp.pad(rows, ((0, 1), (0, 0)))

        def outer(_: None, i: jax.Array) -> tuple[None, jax.Array]:
            block = lax.dynamic_slice(padded, (i * 19, 0), (23, 4))

            def inner(_: None, j: jax.Array) -> tuple[None, jax.Array]:
                return None, lax.dynamic_slice(block, (0, 2 * j), (23, 2))

            return None, lax.scan(inner, None, jnp.arange(2))[1]

        return lax.scan(outer, None, jnp.arange(3))[1]

    padded = np.pad(rows, ((0, 1), (0, 0)))
    right = [[padded[19 * i :, 2 * j :][:23, :2] for j in range(2)] for i in range(3)]
    return blocks(rows), np.asarray(right)


def _form() -> Answer:
    weights, points = jnp.arange(1.0, 4.0), jnp.ones((1_000_000, 3))

    def mean(x: jax.Array) -> jax.Array:
        def one(y: jax.Array) -> jax.Array:
            gap = y - x
            return gap @ weights + (gap @ jnp.zeros((3, 3))) @ gap

        return jax.vmap(one)(points).mean()

    return jax.jit(jax.grad(mean))(jnp.ones(3)), -np.arange(1.0, 4.0)


def _division() -> Answer:
    values = jnp.asarray([2, 2, -3])
    divide = jax.jit(lambda all_: lax.fori_loop(1, 3, lambda i, held: held // all_[i], all_[0]))
    return divide(values), np.asarray(2 // 2 // -3)


def _products() -> Answer:
    products: list[Any] = []
    right: list[Any] = []
    for rows, inner, columns in ((1, 3, 5), (7, 65, 33), (100, 3136, 10), (257, 129, 64)):
        left, other = _numbers(rows, inner), _numbers(inner, columns)
        products.append(jax.jit(jnp.matmul)(left, other))
        right.append(left.astype(np.float64) @ other)
    return products, right


def _products_in_a_scan() -> Answer:
    left, right = _numbers(6, 33, 65), _numbers(6, 65, 17)

    @jax.jit
    def both(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(held: jax.Array, pair: Any) -> tuple[jax.Array, None]:
            return held + pair[0] @ pair[1], None

        return lax.scan(add, jnp.zeros((33, 17)), (left, right))[0], left @ right

    product = left.astype(np.float64) @ right
    return both(left, right), (product.sum(0), product)


def _correlated(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution as networks have it, padding SAME, in double precision."""
    wide, edge = images.astype(np.float64), kernel.shape[0] // 2
    padded = np.pad(wide, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    kernels = np.moveaxis(kernel.astype(np.float64), -1, 0)
    maps = [[correlate(image, channel, "valid")[..., 0] for channel in kernels] for image in padded]
    return np.moveaxis(np.asarray(maps), 1, -1)


def _kernel_gradient(images: np.ndarray, gradient: np.ndarray, size: int) -> np.ndarray:
    edge, (_, height, width, _) = size // 2, images.shape
    padded = np.pad(images.astype(np.float64), ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    taps = [
        [
            np.einsum("bhwc,bhwf->cf", padded[:, i : i + height, j : j + width], gradient)
            for j in range(size)
        ]
        for i in range(size)
    ]
    return np.asarray(taps)


_CONVOLUTIONS = (((3, 9, 7, 1), 3, 8), ((2, 14, 14, 9), 3, 16), ((2, 8, 8, 3), 5, 6))


def _convolutions() -> Answer:
    """Convolutions as JAX has them and as ours, with strides, and in a scan."""
    maps: list[Any] = []
    right: list[Any] = []
    layout = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def convolved(images: jax.Array, kernel: jax.Array) -> Any:
        plain = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)
        edge = kernel.shape[0] // 2
        strided = lax.conv_general_dilated(
            images, kernel, (2, 2), [(edge, edge), (edge, edge)], dimension_numbers=layout
        )
        one_by_one = lax.map(lambda image: same_convolution(image[None], kernel)[0], images)
        return plain, strided, one_by_one

    for shape, size, features in _CONVOLUTIONS:
        images, kernel = _numbers(*shape), _numbers(size, size, shape[-1], features)
        expected = _correlated(images, kernel)
        maps.append(convolved(images, kernel))
        right.append((expected, expected[:, ::2, ::2], expected))
    return maps, right


def _gradients() -> Answer:
    """Gradients of our convolution, as they are and in the loop of a training step."""
    gradients: list[Any] = []
    right: list[Any] = []

    @jax.jit
    def pulled_back(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        def pulled(_: Any, turn: jax.Array) -> tuple[None, Any]:
            return None, jax.vjp(same_convolution, images * turn, kernel)[1](gradient)

        looped = lax.scan(pulled, None, jnp.ones(2))[1]
        return jax.vjp(same_convolution, images, kernel)[1](gradient), jax.tree.map(
            lambda leaf: leaf[1], looped
        )

    for shape, size, features in _CONVOLUTIONS:
        images, kernel = _numbers(*shape), _numbers(size, size, shape[-1], features)
        gradient = _numbers(*shape[:-1], features)
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        expected = _correlated(gradient, flipped), _kernel_gradient(images, gradient, size)
        gradients.append(pulled_back(images, kernel, gradient))
        right.append((expected, expected))
    return gradients, right


def _pools() -> Answer:
    images = _numbers(3, 6, 8, 5)
    windows = images.reshape(3, 3, 2, 4, 2, 5)
    spread = np.full(images.shape, 0.25)
    chosen = windows == windows.max((2, 4), keepdims=True)
    pooled = [
        jax.jit(jax.value_and_grad(lambda x, pool=pool: pool(x).sum()))(images)
        for pool in (average_pool, max_pool)
    ]
    right = [
        (windows.mean((2, 4), dtype=np.float64).sum(), spread),
        (windows.max((2, 4)).sum(dtype=np.float64), chosen.reshape(images.shape)),
    ]
    return pooled, right


THREEFRY_WORDS = (0xAC91290B, 0xF9807E00, 0x4C65C188, 0x44455121)
FAST_WORDS = (0xF866BA81, 0xFDA089AF, 0xDC0B7071, 0xB2CA2C78)
"""Of the key 7: the first and last two of 1,003 words."""


def _words() -> Answer:
    draw = jax.jit(random_bits, static_argnums=(1, 2))
    key = jax.random.key(7, impl="threefry2x32")
    drawn = [draw(key, (17, 59), bits).ravel() for bits in ("threefry", "fast")]
    places = np.asarray([0, 1, 1001, 1002])
    chosen = [np.asarray(words)[places] for words in drawn]
    return chosen, [np.asarray(THREEFRY_WORDS), np.asarray(FAST_WORDS)]


def _steps() -> Answer:
    images = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 1), np.uint8)
    data = Batch(jnp.asarray(images), jnp.arange(64) % 10)
    chunk = Chunk(
        jnp.arange(64, dtype=jnp.int32).reshape(2, 32), jax.random.split(jax.random.key(1), 2), {}
    )

    def trained() -> Any:
        state = create_state(CNN(), jnp.ones((1, 12, 12, 1)), jax.random.key(0), adam())
        return jax.device_get(train_steps(state, data, chunk, jnp.int32(2))[0].params)

    return trained(), trained()


TRIALS = (
    Trial("rows of a product, squared and summed (jax issue 39103)", _rows),
    Trial("padding read back in nested scans (jax issue 39120)", _padding, exact=True),
    Trial("gradient of a quadratic form (openxla/xla issue 13054)", _form),
    Trial("whole division in a loop (jax issue 9604)", _division, exact=True),
    Trial("matrix products", _products),
    Trial("matrix products in a scan and side by side", _products_in_a_scan),
    Trial("convolutions, with strides, in a loop", _convolutions),
    Trial("gradients of convolutions, in a loop", _gradients),
    Trial("pooling and its gradients", _pools),
    Trial("words that masks are made of", _words, exact=True),
    Trial("two training steps, done twice, bit by bit", _steps, exact=True),
)
