"""The networks by name, and networks of the user's own as MODULE:CLASS."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flax import linen as nn

from thinned.core.config import MlpConfig
from thinned.core.errors import RequestError
from thinned.dropout.sites import DropoutSpec
from thinned.models.cnn import CNN
from thinned.models.convnet import ConvNet
from thinned.models.efficientnet import EfficientNetLite
from thinned.models.mlp import MLP
from thinned.models.mobilenet import MobileNetV2
from thinned.models.own import is_own, own
from thinned.models.resnet import ResNet
from thinned.models.resnet_imagenet import ImageNetResNet
from thinned.models.staged import Staged
from thinned.models.vit import ViT
from thinned.models.wide_resnet import WideResNet

CATALOG: Mapping[str, str] = {
    "cnn": "the tutorial's: two 3 x 3 convolutions, one dense layer",
    "resnet": "small residual network for colour images, with batch normalisation",
    "mlp": "fully connected, see --mlp.hidden and --mlp.units",
    "lenet": "LeNet-5 (LeCun et al. 1998) with ReLU and max pooling",
    "c20-c40-f1000-f1000": "two 5 x 5 convolutions, two dense layers of 1,000",
    "efficientnet-lite0": "EfficientNet-Lite (Tan and Le 2019), for photos; the smallest",
    "efficientnet-lite1": "EfficientNet-Lite, deeper",
    "efficientnet-lite2": "EfficientNet-Lite, deeper and wider",
    "mobilenet-v2": "MobileNetV2 (Sandler et al. 2018), for photos",
    "resnet-18": "ResNet of 18 layers for photos (He et al. 2016)",
    "resnet-34": "ResNet of 34 layers for photos",
    "resnet-50": "ResNet of 50 layers for photos",
    "vit-tiny-16": "vision transformer of 16 x 16 patches (Dosovitskiy et al. 2021); Ti",
    "vit-small-16": "vision transformer of 16 x 16 patches; S",
    "vit-base-16": "vision transformer of 16 x 16 patches; B",
    "wide-resnet-16-4": "wide residual network (Zagoruyko 2016) of 16 layers, 4 times wider",
    "wide-resnet-28-10": "wide residual network of 28 layers, 10 times wider; any D-K can be named",
}
"""Name -> what it is."""

STAGED: Mapping[str, Callable[..., Staged]] = {
    "efficientnet-lite0": EfficientNetLite,
    "efficientnet-lite1": partial(EfficientNetLite, depth=1.1),
    "efficientnet-lite2": partial(EfficientNetLite, width=1.1, depth=1.2),
    "mobilenet-v2": MobileNetV2,
    "resnet-18": ImageNetResNet,
    "resnet-34": partial(ImageNetResNet, depth=34),
    "resnet-50": partial(ImageNetResNet, depth=50),
    "vit-tiny-16": ViT,
    "vit-small-16": partial(ViT, width=384),
    "vit-base-16": partial(ViT, width=768),
}
"""Networks of stages, for which weights are published."""

PHOTOS = "efficientnet-lite0"
"""The network that photos are learned with where no other is named."""

SIDES: Mapping[str, int] = {
    **dict.fromkeys(STAGED, 224),
    "efficientnet-lite1": 240,
    "efficientnet-lite2": 260,
}
"""Side of the images, in pixels, that published weights were trained with."""
FINE_SIDES: Mapping[str, int] = {
    name: side * 8 // 7 for name, side in SIDES.items() if not name.startswith("vit")
}
"""Side of the images where the whole network goes on training, on random crops.

What a crop shows is larger than in a whole photo of the same side, so that networks see best at a
side larger than that of their crops (Touvron et al. 2019, "Fixing the train-test resolution
discrepancy"). ViT's embedded places are of one side.
"""

_WIDE = re.compile("wide-resnet-([1-9][0-9]{1,2})-([1-9][0-9]?)")


def has_branches(name: str) -> bool:
    """Whether a network has residual branches, for kind ``path``."""
    return name == RESIDUAL or _staged(name) is not None


RESIDUAL = "resnet"
"""The network that is named to those who ask another for residual branches."""


def network(
    name: str,
    classes: int,
    dropout: DropoutSpec,
    mlp: MlpConfig,
    *,
    frozen_statistics: bool = False,
) -> nn.Module:
    """A network by its name.

    Args:
        name: of `CATALOG`, or MODULE:CLASS.
        classes: number of classes.
        dropout: what networks of the package drop; the user's own drop what they say.
        mlp: the shape of ``mlp``.
        frozen_statistics: see `Staged`; other networks have no such thing.

    Raises:
        RequestError: no network has that name, or the user's cannot be made.
    """
    refuse_unknown(name)
    staged = _staged(name)
    if staged:
        return staged(classes=classes, dropout=dropout, frozen_statistics=frozen_statistics)
    if is_own(name):
        return own(name, classes)
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
    if is_own(name) or name in CATALOG or _staged(name):
        return
    close = difflib.get_close_matches(name, CATALOG, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(CATALOG)}, MODULE:CLASS"
    raise RequestError(f"--model {name[:60]}: there is no such network; {hint}")


SMALLEST: Mapping[str, int] = {
    "lenet": 12,
    **{name: 16 if name.startswith("vit") else 32 for name in STAGED},
    "wide-resnet-16-4": 8,
    "wide-resnet-28-10": 8,
}
"""Least side of the images, in pixels, where it is more than 4."""


def _staged(name: str) -> Callable[..., Staged] | None:
    wide = _WIDE.fullmatch(name)
    if wide is None:
        return STAGED.get(name)
    depth, widening = map(int, wide.groups())
    if depth < 10 or (depth - 4) % 6:
        raise RequestError(
            f"--model {name}: the depth of a wide residual network is 6 n + 4: 10, 16, 22, 28, 40"
        )
    return partial(WideResNet, depth=depth, widening=widening)
