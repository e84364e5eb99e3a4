"""Fully connected networks, as in the paper that dropout comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from thinned.dropout.sites import INPUT, DropoutSpec, dropped_dense

Units = Literal["relu", "logistic", "maxout"]


class MLP(nn.Module):
    """Dense layers with dropout before each: of the inputs, and of every hidden layer.

    Srivastava et al. (2014), section 6.1.1. Sites: ``input``, ``hidden_1``, ``hidden_2`` and so on;
    with kind ``connect`` the layers ``Dense_0``, ``Dense_1`` and so on themselves.

    Attributes:
        classes: number of classes.
        dropout: what is dropped.
        hidden: units of each hidden layer.
        units: ``relu``, ``logistic``, or ``maxout`` (Goodfellow et al. 2013): each unit is the
            largest of `pieces` linear functions.
        pieces: linear functions of a maxout unit.
    """

    classes: int = 10
    dropout: DropoutSpec = DropoutSpec()
    hidden: Sequence[int] = (1024, 1024, 1024)
    units: Units = "relu"
    pieces: int = 5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        x, pieces = images.reshape(images.shape[0], -1), 1
        if self.units == "maxout":
            pieces = self.pieces
        for index, width in enumerate(self.hidden):
            site = f"hidden_{index}" if index else INPUT
            x = dropped_dense(
                x, width * pieces, self.dropout, train=train, site=site, dense=f"Dense_{index}"
            )
            if self.units == "maxout":
                x = x.reshape(x.shape[0], width, pieces).max(-1)
            else:
                x = nn.relu(x) if self.units == "relu" else nn.sigmoid(x)
        last = len(self.hidden)
        return dropped_dense(
            x, self.classes, self.dropout, train=train, site=f"hidden_{last}", dense=f"Dense_{last}"
        )
