"""Thin Flax Linen shells around `thinned.dropout.functional`, and where they stand in a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn

from thinned.dropout.functional import Rate, dropout
from thinned.errors import RequestError
from thinned.types import Bits, Key

RATES = "rates"
"""The variable collection through which rates come beside the batch; `init` never creates it."""


class Dropout(nn.Module):
    """`flax.linen.Dropout`, with its arguments and its very masks, cheaper on a CPU.

    When the module is applied with a collection ``rates`` that has an entry for this layer (see
    `rates_collection`), the rate is taken from there and may be traced; otherwise it is the
    attribute's.

    Attributes:
        rate: probability of dropping (not of keeping), 0 to 1 inclusive.
        broadcast_dims: axes along which one draw is shared.
        deterministic: whether inputs pass unchanged; given here or in the call.
        rng_collection: the stream of keys to draw from.
        bits: generator, see `thinned.dropout.bits`.
        rng: a key to use instead of the stream's.
    """

    rate: Rate
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    rng: Key | None = None
    bits: Bits = "threefry"

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Key | None = None
    ) -> jax.Array:
        """Inputs float [...] with elements dropped; unchanged when deterministic.

        Raises:
            RequestError: `deterministic` is given nowhere or twice, or see
                `thinned.dropout.functional.dropout`.
        """
        if (self.deterministic is None) == (deterministic is None):
            times = "nowhere" if deterministic is None else "twice"
            raise RequestError(
                f"{'/'.join(self.path) or 'Dropout'}: deterministic is given {times}: say once, "
                "as attribute or in the call, whether dropout is off"
            )
        if self.deterministic or deterministic:
            return inputs
        rate = self.rate
        if self.has_variable(RATES, "rate"):
            rate = self.get_variable(RATES, "rate")
        if isinstance(rate, int | float) and rate == 0:
            return inputs
        if rng is None:
            rng = self.rng if self.rng is not None else self.make_rng(self.rng_collection)
        return dropout(inputs, rate, rng, bits=self.bits, broadcast_dims=self.broadcast_dims)


@dataclass(frozen=True)
class Site:
    """A place in a module where something is dropped.

    Attributes:
        rate: the layer's own drop probability.
        shape: of what passes through.
    """

    rate: Any
    shape: tuple[int, ...]


def dropout_sites(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """All `Dropout` layers that a call of `module` passes, without computing anything.

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
        if isinstance(layer, Dropout) and context.method_name == "__call__":
            found["/".join(layer.path)] = Site(layer.rate, values[0].shape)
        return run(*values, **options)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def call(*values: Any) -> Any:
        with nn.intercept_methods(note):
            return module.init(keys, *values, **kwargs)

    jax.eval_shape(call, *args)
    return found


def rates_collection(rates: Mapping[str, Any]) -> dict[str, Any]:
    """Rates by site name as the variable collection ``rates``: nested as the names' paths."""
    nested: dict[str, Any] = {}
    for site, rate in rates.items():
        place = nested
        for part in site.split("/"):
            place = place.setdefault(part, {})
        place["rate"] = rate
    return nested
