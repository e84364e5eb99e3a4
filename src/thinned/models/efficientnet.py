"""EfficientNet-Lite: EfficientNet without what phones are slow at, and laptops as well.

Tan and Le (2019), "EfficientNet: rethinking model scaling for convolutional neural networks",
table 1; without squeeze-and-excitation, with ReLU6, and with the first and the last stages not
scaled: TensorFlow's ``efficientnet-lite``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from flax import linen as nn

from thinned.models.convnorm import ConvNorm, InvertedResidual
from thinned.models.staged import Scaling, Stage, Staged, Style

INPUT: Scaling = ((127 / 255,) * 3, (128 / 255,) * 3)
"""As (u8 - 127) / 128."""

STYLE = Style(symmetric=False, momentum=0.99, epsilon=1e-3, activation=nn.relu6)
STAGES = (
    # Repeats, side of the kernel, stride, expansion, features.
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite(Staged):
    """A convolution, seven rows of inverted residual blocks, a 1 x 1 convolution, the head.

    Attributes:
        classes, dropout, frozen_statistics: see `Staged`.
        width: what the features of the blocks are multiplied by.
        depth: what the number of blocks is multiplied by, but in the first and the last row.
    """

    width: float = 1.0
    depth: float = 1.0
    scaling: ClassVar[Scaling] = INPUT

    def rows(self) -> tuple[int, ...]:
        """How many blocks each row has."""
        last = len(STAGES) - 1
        return tuple(
            repeats if row in (0, last) else math.ceil(repeats * self.depth)
            for row, (repeats, *_) in enumerate(STAGES)
        )

    def stages(self) -> Mapping[str, Stage]:
        """See `Staged.stages`."""
        body: dict[str, Stage] = {"stem": partial(ConvNorm, 32, 3, 2, STYLE)}
        for count, (_, size, stride, expansion, features) in zip(self.rows(), STAGES, strict=True):
            for index in range(count):
                body[f"blocks_{len(body) - 1}"] = partial(
                    InvertedResidual,
                    multiple_of_8(features * self.width),
                    expansion,
                    size,
                    1 if index else stride,
                    STYLE,
                )
        return {**body, "neck": partial(ConvNorm, 1280, style=STYLE)}


def multiple_of_8(features: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of `features`.

    >>> [multiple_of_8(number * 1.1) for number in (16, 24, 40, 80, 192)]
    [16, 24, 48, 88, 208]
    """
    nearest = max(8, int(features + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * features else nearest
