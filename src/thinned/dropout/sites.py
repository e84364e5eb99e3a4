"""Where a module drops something, and the rates of those places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from thinned.core.types import Bits
from thinned.dropout.linen import (
    AlphaDropout,
    ChannelDropout,
    ConcreteDropout,
    DropBlock,
    DropConnectDense,
    Dropout,
    DropoutLayer,
    DropPath,
    GaussianDropout,
)

Kind = Literal["element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect"]
"""What is dropped together; docs/dropout.md says what each is for."""


MAPS = ("channel", "block", "path")
"""Kinds that drop parts of feature maps; where there is no map, they drop nothing."""

USUAL_RATE = 0.5
"""The rate of a hidden layer where neither a config nor its network names another."""

INPUT = "input"
"""The site at a network's input, whose rate a config keeps lower than those of hidden ones."""


@dataclass(frozen=True)
class Site:
    """A place in a module where something is dropped.

    Attributes:
        rate: the layer's own drop probability.
        shape: of what passes through.
        kind: what is dropped together, see `Kind`.
        features: outputs of the layer, where weights are dropped; else 0.
    """

    rate: Any
    shape: tuple[int, ...]
    kind: str = "element"
    features: int = 0

    @property
    def learned(self) -> bool:
        """Whether the rate is a parameter of the layer."""
        return self.kind == ConcreteDropout.kind


@dataclass(frozen=True)
class DropoutSpec:
    """What a network of ours drops at its sites; hashable, so that equal networks are one.

    Attributes:
        kind: what is dropped together.
        rate: each layer's own rate, or None for the one that the network names; what comes with the
            collection ``rates`` goes before it.
        bits: generator of the masks.
        block_size: side of a block of kind ``block``, in positions.
        examples: training examples, for kind ``concrete``.
    """

    kind: Kind = "element"
    rate: float | None = None
    bits: Bits = "fast"
    block_size: int = 7
    examples: int = 1

    def rate_or(self, own: float = USUAL_RATE) -> float:
        """The rate of a layer: the one named here, else the network's `own`."""
        return own if self.rate is None else self.rate

    def layer(self, name: str, *, train: bool, rate: float = USUAL_RATE) -> DropoutLayer:
        """The layer of a kind that drops activations (any but ``connect``).

        Args:
            name: of the layer, and of its site.
            train: whether it drops.
            rate: its own, where none is named here.
        """
        rate = self.rate_or(rate)
        options: dict[str, Any] = {"deterministic": not train, "bits": self.bits, "name": name}
        if self.kind == "block":
            return DropBlock(rate, block_size=self.block_size, **options)
        if self.kind == "concrete":
            return ConcreteDropout(rate, examples=self.examples, **options)
        simple = (Dropout, ChannelDropout, DropPath, GaussianDropout, AlphaDropout)
        return {layer.kind: layer for layer in simple}[self.kind](rate, **options)


def dropped_dense(
    x: jax.Array,
    features: int,
    spec: DropoutSpec,
    *,
    train: bool,
    site: str,
    dense: str,
    rate: float = USUAL_RATE,
) -> jax.Array:
    """Dropout, then a dense layer, in whatever way `spec` says; call it in a compact method.

    Args:
        x: float [batch, ...]; dropped as it is, then flattened.
        features: outputs of the dense layer.
        spec: what to drop.
        train: whether to drop.
        site: name of the dropout layer, unless weights are dropped.
        dense: name of the dense layer, and of the site where weights are dropped.
        rate: the site's own, where `spec` names none.

    Returns:
        float [batch, features].
    """
    if spec.kind == "connect":
        layer = DropConnectDense(
            features, spec.rate_or(rate), bits=spec.bits, deterministic=not train, name=dense
        )
        return layer(x.reshape(x.shape[0], -1))
    if x.ndim == 2 and spec.kind in MAPS:
        return nn.Dense(features, name=dense)(x)
    drop = spec.layer(site, train=train, rate=rate)
    flat = drop(x).reshape(x.shape[0], -1)
    layer = nn.Dense(features, name=dense)
    outputs = layer(flat)
    if isinstance(drop, ConcreteDropout):
        drop.regularise(layer.get_variable("params", "kernel"), flat.shape[-1])
    return outputs


def dropout_sites(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """All layers of ours that a call of `module` passes, without computing anything.

    Args:
        module: any Linen module.
        args: positional arguments of its call; arrays, or shapes with dtypes.
        kwargs: keyword arguments of its call, e.g. ``train=True``.

    Returns:
        Site name (the layer's path, joined by ``/``) -> `Site`, in the order of the call.
    """
    found: dict[str, Site] = {}

    def note(run: Any, values: Any, options: Any, context: Any) -> Any:
        layer = context.module
        # One without a kind stands for a layer of another library, whose rate nobody can set.
        known = isinstance(layer, DropoutLayer) and layer.kind
        if known and context.method_name == "__call__":
            rate: Any = getattr(layer, "rate", None)
            features: int = getattr(layer, "features", 0)
            inputs = values[0] if values else options["inputs"]
            found["/".join(layer.path)] = Site(rate, inputs.shape, layer.kind, features)
        return run(*values, **options)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def call(*values: Any) -> Any:
        with nn.intercept_methods(note):
            return module.init(keys, *values, **kwargs)

    jax.eval_shape(call, *args)
    return found


def rates_collection(rates: Mapping[str, Any]) -> dict[str, Any]:
    """Rates by site name as the variable collection ``rates``: nested as the names' paths.

    Plain numbers become f32 arrays, so that a compiled call takes any of them.
    """
    nested: dict[str, Any] = {}
    for site, rate in rates.items():
        place = nested
        for part in site.split("/"):
            place = place.setdefault(part, {})
        place["rate"] = jnp.asarray(rate, jnp.float32)
    return nested
