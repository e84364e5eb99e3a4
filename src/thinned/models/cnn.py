"""The convolutional network of Flax's dropout tutorial."""

from __future__ import annotations

import jax
from flax import linen as nn

from thinned.dropout.layers import Dropout
from thinned.models.convolution import average_pool, conv_general_dilated
from thinned.types import Bits


class CNN(nn.Module):
    """Two 3 x 3 convolutions with ReLU and 2 x 2 average pooling, dropout, one dense layer.

    With 28 x 28 grey images and ten classes it has 50,186 parameters. Submodules carry Flax's
    automatic names, so that a key initialises them, and draws their masks, exactly as in the
    tutorial.

    Attributes:
        classes: number of classes.
        rate: drop probability before the dense layer, 0 to 1.
        bits: generator of the mask.
    """

    classes: int = 10
    rate: float = 0.5
    bits: Bits = "fast"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel] in [0, 1]."""
        x = images
        for features in (32, 64):
            x = nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)(x)
            x = average_pool(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.rate, bits=self.bits, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)
