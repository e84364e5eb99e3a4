"""MobileNetV2 as PyTorch's model zoos have it (Sandler et al. 2018, table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from flax import linen as nn

from thinned.models.convnorm import ConvNorm, InvertedResidual
from thinned.models.staged import IMAGENET, Scaling, Stage, Staged, Style

INPUT: Scaling = IMAGENET

STYLE = Style(activation=nn.relu6)
STAGES = (
    # Repeats, stride, expansion, features.
    (1, 1, 1, 16),
    (2, 2, 6, 24),
    (3, 2, 6, 32),
    (4, 2, 6, 64),
    (3, 1, 6, 96),
    (3, 2, 6, 160),
    (1, 1, 6, 320),
)


class MobileNetV2(Staged):
    """A convolution, seven rows of inverted residual blocks, a 1 x 1 convolution, the head.

    Attributes:
        classes, dropout, frozen_statistics: see `Staged`.
    """

    scaling: ClassVar[Scaling] = INPUT

    def rows(self) -> tuple[int, ...]:
        """How many blocks each row has."""
        return tuple(repeats for repeats, *_ in STAGES)

    def stages(self) -> Mapping[str, Stage]:
        """See `Staged.stages`."""
        body: dict[str, Stage] = {"stem": partial(ConvNorm, 32, 3, 2, STYLE)}
        for count, stride, expansion, features in STAGES:
            for index in range(count):
                body[f"blocks_{len(body) - 1}"] = partial(
                    InvertedResidual, features, expansion, 3, 1 if index else stride, STYLE
                )
        return {**body, "neck": partial(ConvNorm, 1280, style=STYLE)}
