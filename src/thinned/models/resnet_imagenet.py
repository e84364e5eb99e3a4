"""ResNet-18, -34 and -50 for images of ImageNet's size (He et al. 2016, table 1).

As PyTorch's model zoos have them: a block of three convolutions has its stride in the middle one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from thinned.models.convnorm import ConvNorm
from thinned.models.staged import IMAGENET, Passing, Scaling, Stage, Staged, Style

INPUT: Scaling = IMAGENET

STYLE = Style()
BLOCKS: Mapping[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Depth -> blocks of each row; from 50 on, blocks are bottlenecks."""


class Stem(nn.Module):
    """A 7 x 7 convolution at stride 2 and the maximum over 3 x 3 at stride 2."""

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height / 4, width / 4, 64], rounded up, of images."""
        x = ConvNorm(64, 7, 2, STYLE, name="conv1")(x, passing)
        return _largest(_largest(x, 1), 2)


class Residual(nn.Module):
    """Two 3 x 3 convolutions, or a 3 x 3 one between two of 1 x 1, beside the inputs.

    Attributes:
        width: features of the 3 x 3 convolutions.
        stride: of the first of them.
        bottleneck: whether there are three convolutions; the outputs are then 4 `width`.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height / stride, width / stride, feature], rounded up."""
        inputs, width, stride = x, self.width, self.stride
        if self.bottleneck:
            row = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        else:
            row = ((width, 3, stride), (width, 3, 1))
        for index, (features, size, step) in enumerate(row, start=1):
            active = index < len(row)
            convolution = ConvNorm(features, size, step, STYLE, active=active, name=f"conv{index}")
            x = convolution(x, passing)
        if inputs.shape != x.shape:
            shortcut = ConvNorm(x.shape[-1], 1, stride, STYLE, active=False, name="shortcut")
            inputs = shortcut(inputs, passing)
        return nn.relu(inputs + passing.paths[0](x))


class ImageNetResNet(Staged):
    """A stem, four rows of residual blocks of 64 to 512 features, the head.

    Attributes:
        classes, dropout, frozen_statistics: see `Staged`.
        depth: 18, 34 or 50.
    """

    depth: int = 18
    scaling: ClassVar[Scaling] = INPUT

    def rows(self) -> tuple[int, ...]:
        """How many blocks each row has."""
        return BLOCKS[self.depth]

    def stages(self) -> Mapping[str, Stage]:
        """See `Staged.stages`."""
        body: dict[str, Stage] = {"stem": Stem}
        for row, count in enumerate(self.rows()):
            for index in range(count):
                stride = 2 if row and not index else 1
                body[f"blocks_{len(body) - 1}"] = partial(
                    Residual, 64 * 2**row, stride, self.depth >= 50
                )
        return body


def _largest(x: jax.Array, axis: int) -> jax.Array:
    """The maximum over windows of 3 at stride 2, one position of padding on both sides."""
    # Zeros pad as well as minus infinity does: what comes from ReLU is never less.
    padded = jnp.pad(x, [(1, 1) if dimension == axis else (0, 0) for dimension in range(x.ndim)])
    length = x.shape[axis]
    # A reduction over windows would be differentiated by a scatter, slow on a CPU.
    first, second, third = (
        jax.lax.slice_in_dim(padded, start, start + length, 2, axis) for start in range(3)
    )
    return jnp.maximum(jnp.maximum(first, second), third)
