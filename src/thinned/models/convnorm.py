"""A convolution with batch normalisation, and MobileNet's blocks, which are made of three."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from jax import lax

from thinned.models.convolution import conv_general_dilated
from thinned.models.staged import Passing, Style


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, an activation.

    Attributes:
        features: outputs.
        size: side of the kernel, odd.
        stride: of the kernel.
        style: padding, normalisation and activation.
        depthwise: whether each channel has a kernel of its own; `features` are its channels.
        active: whether the activation is applied.
    """

    features: int
    size: int = 1
    stride: int = 1
    style: Style = Style()
    depthwise: bool = False
    active: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height / stride, width / stride, features], rounded up."""
        # Statistics that stand still are a scale and a shift of each channel: laid into the kernel,
        # they cost nothing, and a step keeps and reads half as many maps.
        folds = passing.average and not self.is_initializing()
        scale, shift = self._affine() if folds else (1.0, 0.0)

        def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
            return conv_general_dilated(x, kernel * scale, *args, **kwargs)

        x = nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=self.style.padding(self.size, self.stride),
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        x = x + shift if folds else self.style.norm(passing, "norm")(x)
        return self.style.activation(x) if self.active else x

    def _affine(self) -> tuple[jax.Array, jax.Array]:
        """What normalisation by the running statistics multiplies by and adds, f32 [features]."""
        learned = self.variables["params"]["norm"]
        collected = self.variables["batch_stats"]["norm"]
        scale = learned["scale"] * lax.rsqrt(collected["var"] + self.style.epsilon)
        return scale, learned["bias"] - collected["mean"] * scale


class InvertedResidual(nn.Module):
    """1 x 1 convolution to more features, a depthwise one, 1 x 1 to few (Sandler et al. 2018).

    Attributes:
        features: outputs.
        expansion: how many times the inputs the features between are; 1 leaves out the first.
        size: side of the depthwise kernel.
        stride: of the depthwise kernel; the inputs are added where it is 1 and none are more.
        style: see `ConvNorm`.
    """

    features: int
    expansion: int = 6
    size: int = 3
    stride: int = 1
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Maps f32 [batch, height / stride, width / stride, features], rounded up."""
        inputs, style, width = x, self.style, x.shape[-1] * self.expansion
        if self.expansion != 1:
            x = ConvNorm(width, style=style, name="expand")(x, passing)
        x = ConvNorm(width, self.size, self.stride, style, depthwise=True, name="depthwise")(
            x, passing
        )
        x = ConvNorm(self.features, style=style, active=False, name="project")(x, passing)
        return inputs + passing.paths[0](x) if x.shape == inputs.shape else x
