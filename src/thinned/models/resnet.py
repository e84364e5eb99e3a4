"""A small residual network for colour images, made of what is fast on a CPU, too."""

from __future__ import annotations

import jax
from flax import linen as nn

from thinned.dropout.linen import DropPath
from thinned.dropout.sites import DropoutSpec, dropped_dense
from thinned.models.convolution import average_pool, conv_general_dilated

_SMALLEST_MAP = 8


class ResNet(nn.Module):
    """Stages of pooling by 2, a convolution and a residual block (He et al. 2016), ever wider.

    Each convolution is 3 x 3 at stride 1, followed by batch normalisation and ReLU. Stages are
    added as long as the map is at least 16 x 16. Then the mean over the map, dropout, a dense
    layer.

    Attributes:
        classes: number of classes.
        dropout: what is dropped: kind ``path`` drops the residual branches, ``channel`` and
            ``block`` the last map, others the features behind it.
        width: channels of the first stage.
    """

    classes: int = 10
    dropout: DropoutSpec = DropoutSpec()
    width: int = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        x = _convolved(images, self.width, train)
        width, stage = self.width, 0
        while min(x.shape[1:3]) >= 2 * _SMALLEST_MAP or stage == 0:
            if min(x.shape[1:3]) >= 2:
                x = average_pool(x)
            width, stage = min(2 * width, 128), stage + 1
            x = _convolved(x, width, train)
            branch = _convolved(_convolved(x, width, train), width, train, last=True)
            if self.dropout.kind == "path":
                branch = self._path(branch, f"DropPath_{stage - 1}", train)
            x = nn.relu(x + branch)
        if self.dropout.kind in ("channel", "block"):
            x = self.dropout.layer("Dropout_0", train=train)(x)
        features = x.mean((1, 2))
        return dropped_dense(
            features, self.classes, self.dropout, train=train, site="Dropout_0", dense="Dense_0"
        )

    def _path(self, branch: jax.Array, name: str, train: bool) -> jax.Array:
        spec = self.dropout
        layer = DropPath(spec.rate_or(), deterministic=not train, bits=spec.bits, name=name)
        return layer(branch)


def _convolved(x: jax.Array, features: int, train: bool, last: bool = False) -> jax.Array:
    x = nn.Conv(features, (3, 3), use_bias=False, conv_general_dilated=conv_general_dilated)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return x if last else nn.relu(x)
