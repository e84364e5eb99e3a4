"""Convolutions with pooling, then dense layers: LeNet and its wider successors."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen as nn

from thinned.dropout.sites import INPUT, MAPS, DropoutSpec, dropped_dense
from thinned.models.convolution import conv_general_dilated, max_pool


class ConvNet(nn.Module):
    """5 x 5 convolutions, each with ReLU and 2 x 2 max pooling, then dense layers with ReLU.

    With (6, 16), (120, 84) and only the first one padded it is LeNet-5 (LeCun et al. 1998, section
    II.B) with ReLU and max pooling; with (20, 40) and (1000, 1000) the
    C20-C40-F1000-F1000 of published dropout tables.
    Sites: ``input``; before each dense layer ``hidden_1``, ``hidden_2`` and so on, the first of
    them the last map. Kinds ``channel`` and ``block`` drop that map only.

    Attributes:
        classes: number of classes.
        dropout: what is dropped.
        convolutions: features of each.
        hidden: units of each hidden dense layer.
        padded: how many of the convolutions keep the size of their map; the others lose 2 pixels
            on each side.
    """

    classes: int = 10
    dropout: DropoutSpec = DropoutSpec()
    convolutions: Sequence[int] = (20, 40)
    hidden: Sequence[int] = (1000, 1000)
    padded: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        x = images
        if self.dropout.kind not in (*MAPS, "connect"):
            x = self.dropout.layer(INPUT, train=train)(x)
        for index, features in enumerate(self.convolutions):
            x = nn.Conv(features, (5, 5), conv_general_dilated=conv_general_dilated)(x)
            if index >= self.padded:
                # The inner part of a padded convolution is one without: its gradients stay fast.
                x = x[:, 2:-2, 2:-2]
            x = max_pool(nn.relu(x))
        for index, width in enumerate((*self.hidden, self.classes)):
            x = dropped_dense(
                x,
                width,
                self.dropout,
                train=train,
                site=f"hidden_{index + 1}",
                dense=f"Dense_{index}",
            )
            x = nn.relu(x) if index < len(self.hidden) else x
        return x
