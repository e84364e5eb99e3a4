"""Does our layer drop what Flax's drops? `python benchmarks/programs.py` (two minutes).

Nine kinds of programs, as Flax's own examples and its users write them, small, each with
`flax.linen.Dropout` and with `thinned.Dropout` in its place (`threefry`, `thinned.attention` where
attention drops), the same parameters, inputs and key. Masks are compared bit by bit at every layer;
those inside attention by outputs and gradients, whose largest difference is over the largest value
there is. Exits with 1 where a bit differs, or a value by more than 1e-5.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import thinned

FAR = 1e-5
WIDTH, HEADS, WORDS, CLASSES = 16, 2, 50, 5
Layer = Callable[..., nn.Module]


class Noted(nn.Module):
    """A layer of dropout that says what it keeps."""

    layer: Layer
    rate: float = 0.3
    axes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(self.rate, broadcast_dims=self.axes)(x, deterministic=False)
        self.sow("masks", "kept", y != 0)
        return y


class Mlp(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Noted(self.layer, 0.2)(x.reshape(len(x), -1))
        for _ in range(2):
            x = Noted(self.layer, 0.5)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(CLASSES)(x)


class Cnn(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (8, WIDTH):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
            # Whole maps.
            x = Noted(self.layer, 0.2, (1, 2))(x)
        return nn.Dense(CLASSES)(Noted(self.layer, 0.5)(x.reshape(len(x), -1)))


class WordsLstm(nn.Module):
    """A classifier of texts: words dropped whole, then the last state."""

    layer: Layer

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        x = Noted(self.layer, 0.3, (2,))(nn.Embed(WORDS, WIDTH)(words))
        x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)[:, -1]
        return nn.Dense(CLASSES)(Noted(self.layer, 0.5)(x))


class Cell(nn.Module):
    """A step of a recurrent network with dropout inside."""

    layer: Layer

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        carry, y = nn.OptimizedLSTMCell(WIDTH)(carry, Noted(self.layer)(x))
        return carry, Noted(self.layer)(y)


class Recurrent(nn.Module):
    """Dropout anew at every step of a scan over time."""

    layer: Layer

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        x = nn.Embed(WORDS, WIDTH)(words)
        scanned = nn.scan(
            Cell,
            variable_broadcast="params",
            variable_axes={"masks": 1},
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        zeros = jnp.zeros((len(x), WIDTH))
        return nn.Dense(WORDS)(scanned(self.layer)((zeros, zeros), x)[1])


class Block(nn.Module):
    """A block of a transformer; with a memory, it looks at that, too."""

    layer: Layer
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array | None = None) -> jax.Array:
        options: dict[str, Any] = {"dropout_rate": 0.1, "deterministic": False}
        if self.layer is not nn.Dropout:
            options["attention_fn"] = partial(thinned.attention, bits="threefry")
        attend = partial(nn.MultiHeadDotProductAttention, HEADS, **options)
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        x = x + Noted(self.layer)(attend()(nn.LayerNorm()(x), mask=mask))
        if memory is not None:
            x = x + Noted(self.layer)(attend()(nn.LayerNorm()(x), memory))
        y = nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)))
        # All words of a text drop the same units.
        return x + Noted(self.layer)(nn.Dense(WIDTH)(Noted(self.layer, 0.1, (1,))(y)))


class LanguageModel(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        x = Noted(self.layer)(nn.Embed(WORDS, WIDTH)(words))
        for _ in range(2):
            x = Block(self.layer, causal=True)(x)
        return nn.Dense(WORDS)(x)


class Translation(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        embed = nn.Embed(WORDS, WIDTH)
        memory = Block(self.layer)(Noted(self.layer)(embed(words)))
        x = Block(self.layer, causal=True)(Noted(self.layer)(embed(words[:, ::-1])), memory)
        return nn.Dense(WORDS)(x)


class Vit(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), strides=(4, 4))(x).reshape(len(x), -1, WIDTH)
        places = self.param("places", nn.initializers.normal(0.02), x.shape[1:])
        x = Noted(self.layer)(x + places)
        for _ in range(2):
            x = Block(self.layer)(x)
        return nn.Dense(CLASSES)(x.mean(1))


class Step(nn.Module):
    """A block as the body of a scan over layers."""

    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return Block(self.layer)(x), None


class Bert(nn.Module):
    """Layers under `nn.scan` and `nn.remat`."""

    layer: Layer

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        x = Noted(self.layer)(nn.LayerNorm()(nn.Embed(WORDS, WIDTH)(words)))
        layers = nn.scan(
            nn.remat(Step),
            variable_axes={"params": 0, "masks": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        return nn.Dense(CLASSES)(layers(self.layer)(x, None)[0][:, 0])


class Graph(nn.Module):
    """Messages along edges, as sums at their ends."""

    layer: Layer

    @nn.compact
    def __call__(self, nodes: jax.Array) -> jax.Array:
        ends = jnp.asarray(np.random.default_rng(0).integers(0, len(nodes), (2, 60)))
        x = nodes.reshape(len(nodes), -1)[:, :WIDTH]
        for _ in range(2):
            pairs = jnp.concatenate([x[ends[0]], x[ends[1]]], 1)
            message = Noted(self.layer)(nn.relu(nn.Dense(WIDTH)(pairs)))
            sums = jax.ops.segment_sum(message, ends[1], len(x))
            x = Noted(self.layer)(nn.relu(nn.Dense(WIDTH)(jnp.concatenate([x, sums], 1))))
        return nn.Dense(CLASSES)(x)


IMAGES = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
TEXTS = jax.random.randint(jax.random.key(1), (8, 12), 0, WORDS)
PROGRAMS: dict[str, tuple[Callable[..., nn.Module], jax.Array]] = {
    "MLP": (Mlp, IMAGES),
    "CNN, maps dropped whole": (Cnn, IMAGES),
    "LSTM, words dropped whole": (WordsLstm, TEXTS),
    "recurrent, scan over time": (Recurrent, TEXTS),
    "language model": (LanguageModel, TEXTS),
    "translation, encoder and decoder": (Translation, TEXTS),
    "ViT": (Vit, IMAGES),
    "BERT, scan and remat": (Bert, TEXTS),
    "graph network": (Graph, IMAGES),
}


def trained(model: nn.Module, params: Any, x: jax.Array) -> tuple[Any, jax.Array, Any]:
    """Masks, outputs and gradients of a compiled step."""

    @jax.jit
    def step(params: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            keys = {"dropout": jax.random.key(7)}
            out, noted = model.apply({"params": params}, x, rngs=keys, mutable=["masks"])
            return jnp.sum(out**2), (noted["masks"], out)

        gradients, found = jax.grad(loss, has_aux=True)(params)
        return found, gradients

    (masks, out), gradients = step(params)
    return masks, out, gradients


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest value."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    found = [(float(jnp.max(jnp.abs(a - b))), float(jnp.max(jnp.abs(b)))) for a, b in pairs]
    return max(far for far, _ in found) / max(large for _, large in found)


def main() -> None:
    print(f"# jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(f"{'program':<34}{'layers':>7}{'bits':>9}{'differ':>8}{'outputs':>10}{'gradients':>11}")
    right = True
    for name, (kind, x) in PROGRAMS.items():
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        params = kind(nn.Dropout).init(keys, x)["params"]
        theirs = trained(kind(nn.Dropout), params, x)
        ours = trained(kind(partial(thinned.Dropout, bits="threefry")), params, x)
        masks = [*zip(*map(jax.tree.leaves, (ours[0], theirs[0])), strict=True)]
        bits = sum(one.size for one, _ in masks)
        differ = sum(int(jnp.sum(one != two)) for one, two in masks)
        outputs, gradients = apart(ours[1], theirs[1]), apart(ours[2], theirs[2])
        print(
            f"{name:<34}{len(masks):>7}{bits:>9,}{differ:>8}{outputs:>10.0e}{gradients:>11.0e}",
            flush=True,
        )
        right &= differ == 0 and max(outputs, gradients) <= FAR
    sys.exit(not right)


if __name__ == "__main__":
    main()
