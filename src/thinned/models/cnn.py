"""The convolutional network of Flax's dropout tutorial."""

from __future__ import annotations

import jax
from flax import linen as nn

from thinned.dropout.sites import DropoutSpec, dropped_dense
from thinned.models.convolution import average_pool, conv_general_dilated


class CNN(nn.Module):
    """Two 3 x 3 convolutions with ReLU and 2 x 2 average pooling, dropout, one dense layer.

    With 28 x 28 grey images and ten classes it has 50,186 parameters. Submodules carry Flax's
    automatic names, so that a key initialises them, and draws their masks, exactly as in the
    tutorial.

    Attributes:
        classes: number of classes.
        dropout: what is dropped before the dense layer; the map, just before it is made flat.
    """

    classes: int = 10
    dropout: DropoutSpec = DropoutSpec()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel] in [0, 1]."""
        x = images
        for features in (32, 64):
            x = nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)(x)
            x = average_pool(nn.relu(x))
        return dropped_dense(
            x, self.classes, self.dropout, train=train, site="Dropout_0", dense="Dense_0"
        )
