"""Wide residual networks with dropout inside their blocks, for small images, from scratch.

Zagoruyko and Komodakis (2016), "Wide residual networks", table 1 and section 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from thinned.dropout.sites import DropoutSpec
from thinned.models.convolution import conv_general_dilated
from thinned.models.staged import IMAGENET, Passing, Scaling, Stage, Staged, Style

INPUT: Scaling = IMAGENET

STYLE = Style()
BETWEEN = ("element", "channel", "block", "gaussian", "alpha")
"""Kinds that are dropped between the two convolutions of a block."""
BETWEEN_RATE = 0.3
"""Of those places: section 3, for CIFAR."""


class Wide(nn.Module):
    """Batch normalisation, ReLU, convolution, twice, beside the inputs; dropout between the two.

    Attributes:
        features: outputs.
        stride: of the first convolution.
        dropout: what is dropped at the site ``between``.
    """

    features: int
    stride: int
    dropout: DropoutSpec

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height / stride, width / stride, features], rounded up."""
        inputs = x
        x = nn.relu(STYLE.norm(passing, "norm1")(x))
        if inputs.shape[-1] != self.features or self.stride != 1:
            inputs = _convolution(self.features, 1, self.stride, "shortcut")(x)
        x = _convolution(self.features, 3, self.stride, "conv1")(x)
        x = nn.relu(STYLE.norm(passing, "norm2")(x))
        if self.dropout.kind in BETWEEN:
            x = self.dropout.layer("between", train=passing.train, rate=BETWEEN_RATE)(x)
        x = _convolution(self.features, 3, 1, "conv2")(x)
        return inputs + passing.paths[0](x)


class Stem(nn.Module):
    """A 3 x 3 convolution to 16 features."""

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height, width, 16] of images."""
        return _convolution(16, 3, 1, "conv")(x)


class Neck(nn.Module):
    """Batch normalisation and ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 of the shape of `x`."""
        return nn.relu(STYLE.norm(passing, "norm")(x))


class WideResNet(Staged):
    """A convolution, three rows of blocks of 16, 32 and 64 times `widening` features, the head.

    Sites: ``blocks_0/between`` and so on, with a rate of 0.3 where none is named, and none before
    the head. Kind ``path`` drops as in `Staged`; kinds ``concrete`` and ``connect`` drop before the
    head alone.

    Attributes:
        classes, dropout, frozen_statistics: see `Staged`.
        depth: number of convolutions, 6 n + 4 with n blocks in a row.
        widening: how many times wider than a plain residual network.
    """

    depth: int = 16
    widening: int = 4
    scaling: ClassVar[Scaling] = INPUT
    inner: ClassVar[tuple[str, ...]] = BETWEEN

    def rows(self) -> tuple[int, ...]:
        """How many blocks each row has."""
        return ((self.depth - 4) // 6,) * 3

    def stages(self) -> Mapping[str, Stage]:
        """See `Staged.stages`."""
        body: dict[str, Stage] = {"stem": Stem}
        for row, count in enumerate(self.rows()):
            for index in range(count):
                stride, features = 2 if row and not index else 1, 16 * 2**row * self.widening
                body[f"blocks_{len(body) - 1}"] = partial(Wide, features, stride, self.dropout)
        return {**body, "neck": Neck}


def _convolution(features: int, size: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=STYLE.padding(size, stride),
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )
