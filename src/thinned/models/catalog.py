"""The networks by name, and networks of the user's own as MODULE:CLASS."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from thinned.core.config import MlpConfig
from thinned.core.errors import RequestError
from thinned.dropout.sites import DropoutSpec
from thinned.models.cnn import CNN
from thinned.models.convnet import ConvNet
from thinned.models.mlp import MLP
from thinned.models.resnet import ResNet

CATALOG: Mapping[str, str] = {
    "cnn": "the tutorial's: two 3 x 3 convolutions, one dense layer",
    "resnet": "small residual network for colour images, with batch normalisation",
    "mlp": "fully connected, see --mlp.hidden and --mlp.units",
    "lenet": "LeNet-5 (LeCun et al. 1998) with ReLU and max pooling",
    "c20-c40-f1000-f1000": "two 5 x 5 convolutions, two dense layers of 1,000",
}
"""Name -> what it is."""

RESIDUAL = ("resnet",)
"""Networks with residual branches."""


def network(name: str, classes: int, dropout: DropoutSpec, mlp: MlpConfig) -> nn.Module:
    """A network by its name.

    Args:
        name: of `CATALOG`, or MODULE:CLASS.
        classes: number of classes.
        dropout: what networks of the package drop; the user's own drop what they say.
        mlp: the shape of ``mlp``.

    Raises:
        RequestError: no network has that name, or the user's cannot be made.
    """
    refuse_unknown(name)
    if is_own(name):
        return _own(name, classes)
    if name == "mlp":
        return MLP(classes, dropout, tuple(mlp.hidden), mlp.units, mlp.pieces)
    if name == "lenet":
        return ConvNet(classes, dropout, (6, 16), (120, 84), 1)
    made: dict[str, Any] = {"cnn": CNN, "resnet": ResNet, "c20-c40-f1000-f1000": ConvNet}
    return made[name](classes=classes, dropout=dropout)


def refuse_unknown(name: str) -> None:
    """Refuse a name that is neither of `CATALOG` nor MODULE:CLASS, without making a network.

    Raises:
        RequestError: says which is nearest.
    """
    if is_own(name) or name in CATALOG:
        return
    close = difflib.get_close_matches(name, CATALOG, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(CATALOG)}, MODULE:CLASS"
    raise RequestError(f"--model {name[:60]}: there is no such network; {hint}")


SMALLEST: Mapping[str, int] = {"lenet": 12}
"""Least side of the images, in pixels, where it is more than 4."""


def is_own(name: str) -> bool:
    """Whether a name stands for a network of the user's."""
    return ":" in name


class Adapted(nn.Module):
    """A network of the user's, called as all others are; its variables keep their own paths.

    Attributes:
        inner: called with images, and with `mode` where that is not empty.
        mode: the name of its argument that says whether it is trained: ``train``, ``training``, or
            ``deterministic``, which means the opposite.
    """

    inner: nn.Module
    mode: str

    def setup(self) -> None:
        """Let the network live where this shell does."""
        nn.share_scope(self, self.inner)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        inner: Any = self.inner
        if not self.mode:
            return inner(images)
        return inner(images, **{self.mode: train != (self.mode == "deterministic")})


class Switched(nnx.Module):
    """An NNX network of the user's, switched to training or evaluation in every call."""

    def __init__(self, kind: Any, options: Mapping[str, Any], *, rngs: nnx.Rngs) -> None:
        # Initialisation has the stream `params` alone; other layers ask for theirs there, too.
        every = rngs if "default" in rngs else nnx.Rngs(rngs.params())
        self.inner = kind(**options, rngs=every)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel]."""
        (self.inner.train if train else self.inner.eval)()
        return self.inner(images)


def _own(name: str, classes: int) -> nn.Module:
    module, _, attribute = name.partition(":")
    # As `python -m` does: a module beside where one works is found.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"--model {name}: {type(error).__name__}: {reason}") from error
    if not inspect.isclass(kind) or not issubclass(kind, nn.Module | nnx.Module):
        raise RequestError(f"--model {name} is no flax.linen.Module and no flax.nnx.Module")
    accepted = inspect.signature(kind.__init__).parameters
    counts = [each for each in ("classes", "num_classes") if each in accepted]
    options = {counts[0]: classes} if counts else {}
    try:
        if issubclass(kind, nnx.Module):
            return Adapted(nnx.bridge.to_linen(Switched, kind, options), "train")
        modes = inspect.signature(kind.__call__).parameters
        known = ("train", "training", "deterministic")
        return Adapted(kind(**options), next((mode for mode in known if mode in modes), ""))
    except TypeError as error:
        raise RequestError(
            f"--model {name} cannot be made: {error}; give every attribute but classes a default"
        ) from error
