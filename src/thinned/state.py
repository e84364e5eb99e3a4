"""The training state: everything that a step changes, as one value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from thinned.types import Key, Variables


class TrainState(train_state.TrainState):
    """Flax's `TrainState` with the other variable collections of the model beside `params`.

    Attributes:
        model_state: collections that the forward pass updates, e.g. ``batch_stats``; often empty.
        average: a moving average of `params` that is evaluated in their stead, or None.
    """

    model_state: Variables
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the model, for its ``apply`` at prediction time."""
        params = self.params if self.average is None else self.average
        return {"params": params, **self.model_state}


def create_state(
    model: nn.Module, images: jax.Array, key: Key, tx: optax.GradientTransformation
) -> TrainState:
    """Initialise a model and its optimizer.

    Args:
        model: a Linen module called as ``model(images, train=bool)``.
        images: an example batch, f32 [batch, height, width, channel]; only its shape matters.
        key: the key of the stream `params`; parameters equal those of ``model.init(key, images)``.
        tx: an Optax optimizer.

    Returns:
        A `TrainState` at step 0.
    """
    variables = dict(jax.jit(model.init, static_argnames="train")(key, images, train=False))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        apply_fn=model.apply,
        params=params,
        tx=tx,
        opt_state=tx.init(params),
        model_state=variables,
    )
