"""Weights and images drawn from names alone: the same here and where PyTorch is."""

import zlib

import numpy as np

from thinned.core.config import MlpConfig
from thinned.dropout.sites import DropoutSpec
from thinned.models.catalog import network
from thinned.models.weights.load import OWN, Weights, names_by, shapes_of
from thinned.models.weights.tables import tables

CLASSES = 10
SMALL = (
    *("efficientnet-lite0", "mobilenet-v2", "resnet-18", "resnet-50", "vit-tiny-16"),
    "wide-resnet-16-4",
)

KINDS = ("float32", "float64", "float16", "bfloat16")
"""Of the numbers in the small files of PyTorch's that the tests read."""


def made(name: str, dropout: DropoutSpec | None = None, classes: int = CLASSES, **more):
    return network(name, classes, dropout or DropoutSpec(), MlpConfig(), **more)


def side_of(name: str) -> int:
    """Sides of 72 become odd on the way, where paddings differ; transformers take 16 n."""
    return {"vit": 64, "wide": 20}.get(name.split("-")[0], 72)


def images_for(name: str) -> np.ndarray:
    """Two images f32 [2, side, side, 3] as networks get them."""
    side = side_of(name)
    return np.random.default_rng(7).normal(size=(2, side, side, 3)).astype(np.float32)


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers f32 that leave activations about as large as they come."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "/var", "/scale")) or (
        name.endswith("weight") and len(shape) == 1
    ):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    # Of He et al. (2015), which makes up for what ReLU takes away.
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return (scale * random.normal(size=shape)).astype(np.float32)


def in_pytorch(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that PyTorch gives to a variable of ours."""
    if not path.endswith("/kernel"):
        return shape
    return tuple(shape[axis] for axis in ((3, 2, 0, 1) if len(shape) == 4 else (1, 0)))


def ours(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers for a variable of ours by its own name."""
    array = random_tensor(path, in_pytorch(path, shape))
    if not path.endswith("/kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def random_weights(model, name: str, writer: str) -> Weights:
    """All tensors of a network as a file of that writer would hold them."""
    side = side_of(name)
    shapes = shapes_of(model, (side, side, 3))
    if writer == OWN:
        tensors = {path: ours(path, shape) for path, shape in shapes.items()}
    else:
        tensors = {
            theirs: random_tensor(theirs, in_pytorch(path, shapes[path]))
            for path, theirs in names_by(tables(model)[writer], shapes).items()
        }
    return Weights(tensors, "a file", "a file", "", "")
