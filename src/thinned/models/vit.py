"""Vision transformers of 16 x 16 patches (Dosovitskiy et al. 2021), as timm has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from thinned.core.errors import RequestError
from thinned.models.staged import Passing, Scaling, Stage, Staged

INPUT: Scaling = ((0.5,) * 3, (0.5,) * 3)
"""Of the weights by Steiner et al. (2022), ``augreg``."""

PATCH = 16
_norm = partial(nn.LayerNorm, epsilon=1e-6)


class Embedding(nn.Module):
    """Patches as tokens, a class token before them, and learned positions.

    Attributes:
        width: of a token.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Tokens f32 [batch, 1 + patches, width] of images.

        Raises:
            RequestError: a side of the images is no multiple of 16.
        """
        height, width = x.shape[1:3]
        if height % PATCH or width % PATCH:
            raise RequestError(
                f"images are {height} x {width}: the sides must be multiples of {PATCH} for a "
                "vision transformer (--data.size)"
            )
        x = nn.Conv(self.width, (PATCH, PATCH), PATCH, padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, self.width))
        x = jnp.concatenate((jnp.broadcast_to(token, (len(x), 1, self.width)), x), 1)
        near_zero = nn.initializers.normal(0.02)
        return x + self.param("positions", near_zero, (1, x.shape[1], self.width))


class Attention(nn.Module):
    """Self-attention of several heads, queries, keys and values of one dense layer.

    Attributes:
        heads: how many.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens f32 [batch, token, width] of such tokens."""
        batch, tokens, width = x.shape
        mixed = nn.Dense(3 * width, name="qkv")(x)
        mixed = mixed.reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (mixed[:, :, part] for part in range(3))
        attended = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(width, name="project")(attended.reshape(x.shape))


class Block(nn.Module):
    """Attention, then two dense layers, each beside what enters it, normalised before.

    Attributes:
        heads: of the attention.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Tokens f32 [batch, token, width] of such tokens."""
        first, second = passing.paths
        width = x.shape[-1]
        x = x + first(Attention(self.heads, name="attention")(_norm(name="norm1")(x)))
        hidden = nn.Dense(4 * width, name="dense1")(_norm(name="norm2")(x))
        return x + second(nn.Dense(width, name="dense2")(nn.gelu(hidden, approximate=False)))


class Neck(nn.Module):
    """The class token, normalised."""

    @nn.compact
    def __call__(self, x: jax.Array, passing: Passing) -> jax.Array:
        """Features f32 [batch, width] of tokens f32 [batch, token, width]."""
        return _norm(name="norm")(x[:, 0])


class ViT(Staged):
    """Embedding, twelve blocks, the class token, the head.

    Each block has two residual branches: ``DropPath_0`` and ``DropPath_1`` are the first's.

    Attributes:
        classes, dropout, frozen_statistics: see `Staged`.
        width: of a token: 192 (Ti), 384 (S) or 768 (B); a head has 64 of it.
        depth: blocks.
    """

    width: int = 192
    depth: int = 12
    scaling: ClassVar[Scaling] = INPUT
    branches: ClassVar[int] = 2

    def stages(self) -> Mapping[str, Stage]:
        """See `Staged.stages`."""
        blocks = {f"blocks_{i}": partial(Block, self.width // 64) for i in range(self.depth)}
        return {"stem": partial(Embedding, self.width), **blocks, "neck": Neck}
